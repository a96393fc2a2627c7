"""Other histories of a session: real chains of train pairs, the same last turn, and the same in every back end."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from manifests.schema import Session, Training, Turn
from pipeline.training.data import SessionFeatures, session_features
from pipeline.training.fit import fit
from pipeline.training.models import build_model
from pipeline.training.objective import Objective
from pipeline.training.sampling import Histories
from tests.pipeline.training.sessions import write_store


def chain(name: str, images: str, category: str = "dress") -> Session:
    """A session through the images named by letters; a pair has the same feedback wherever it stands."""
    pairs = list(pairwise(images))
    turns = tuple(Turn(reference=a, captions=(f"from {a} to {b}",)) for a, b in pairs)
    return Session(id=name, category=category, split="train", turns=turns, target=images[-1])


SESSIONS = (
    chain("s0", "abc"),
    chain("s1", "dbe"),
    chain("s2", "fabg"),
    chain("s3", "bcdh"),
    chain("s4", "bah"),
    chain("s5", "xbc", "shirt"),
    chain("s6", "ab"),
)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> SessionFeatures:
    found = session_features(write_store(tmp_path_factory.mktemp("store") / "toy", SESSIONS), SESSIONS)
    # Row numbers stand for texts here: a turn's text is found again by its query.
    return replace(found, texts=found.queries, text_rows=found.query_rows)


def drawn(features: SessionFeatures, session: int, count: int = 400) -> set[tuple[tuple[int, int], ...]]:
    """The different histories that a session is given: (query row, target row) of each turn before padding."""
    torch.manual_seed(0)
    index = torch.full((count,), session)
    histories = Histories(features)
    rows = histories.rows(*histories.redrawn(index, features.lengths[index], 1.0))
    assert rows.texts is not None and torch.equal(rows.texts, rows.queries)
    last = rows.lengths - 1
    assert torch.equal(rows.queries[:, -1], rows.queries.gather(1, last[:, None])[:, 0])  # padding repeats the last
    return {
        tuple(zip(q[:n], t[:n], strict=True))
        for q, t, n in zip(rows.queries.tolist(), rows.targets.tolist(), rows.lengths.tolist(), strict=True)
    }


def history(features: SessionFeatures, images: str, category: str = "dress") -> tuple[tuple[int, int], ...]:
    """The same of the chain through ``images``, from the sessions that hold its pairs."""
    cells = {
        (s.category, *pair): (int(features.query_rows[i, n]), int(features.target_rows[i, n]))
        for i, s in enumerate(features.sessions)
        for n, pair in enumerate(s.pairs)
    }
    return tuple(cells[category, *pair] for pair in pairwise(images))


def test_histories_are_the_chains_of_train_pairs_that_lead_to_the_last_turn(features: SessionFeatures) -> None:
    def all_of(*chains: str) -> set[tuple[tuple[int, int], ...]]:
        return {history(features, images) for images in chains}

    assert drawn(features, 0) == all_of("abc", "dbc")
    assert drawn(features, 2) == all_of("fabg", "cdbg", "abg")  # b-a-b would return to b: it ends there
    assert drawn(features, 3) == all_of("bcdh")
    assert drawn(features, 4) == all_of("fah", "bah")
    assert drawn(features, 5) == {history(features, "xbc", "shirt")}  # a dress's pair is no history of a shirt
    assert drawn(features, 6) == all_of("ab")  # one turn has no history


def test_only_the_share_asked_for_gets_another_history(features: SessionFeatures) -> None:
    torch.manual_seed(0)
    index = torch.full((4000,), 0)
    histories = Histories(features)
    rows = histories.rows(*histories.redrawn(index, features.lengths[index], 0.4))
    other = (rows.queries != features.rows(index).queries).any(1).float().mean().item()
    assert other == pytest.approx(0.2, abs=0.03)  # half of the new histories of this session are its own
    none = histories.rows(*histories.redrawn(index, features.lengths[index], 0.0))
    for found, own in zip(none, features.rows(index), strict=True):
        assert torch.equal(found, own)


def test_every_turn_keeps_its_own_target_and_text(features: SessionFeatures) -> None:
    objective = Objective(features, Training(recombine=1.0, drop_turns=0.3))
    model = build_model("lstm", {"hidden": 4, "texts": features.dim}, features.dim)
    torch.manual_seed(0)
    step = objective.step(model, torch.arange(len(features)).repeat(20))
    pairs = {
        (int(q), int(t)) for q, t in zip(features.query_rows.flatten(), features.target_rows.flatten(), strict=True)
    }
    queries, texts = step.batch.queries.split(features.dim, -1)
    assert torch.equal(queries, texts)
    row_of = {tuple(f.tolist()): n for n, f in enumerate(features.queries)}
    for turn, target in zip(queries.flatten(0, 1), step.rows.flatten(), strict=True):
        assert (row_of[tuple(turn.tolist())], int(target)) in pairs
    assert torch.equal(step.batch.targets, features.targets[step.rows])


@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_training_with_other_histories_repeats(backend: str, features: SessionFeatures) -> None:
    found = []
    for share in (0.0, 0.8, 0.8):
        model = build_model("cm_ntm", {"stages": 2, "hidden": 4, "slots": 2}, features.dim, seed=1)
        lines = list(fit(model, features, Training(epochs=3, batch_size=4, recombine=share), 3, backend=backend))
        found.append([line["loss"] for line in lines])
    assert found[1] == found[2] != found[0]
