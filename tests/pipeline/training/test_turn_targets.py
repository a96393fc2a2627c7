"""Turns that lead to the final target: features, triplets, leaks and histories follow the session model."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.errors import ManifestError
from manifests.identity import caption_key, stack_keys
from manifests.leaks import pair_exposure
from manifests.schema import Dataset, Session
from pipeline.analysis.history import _other_chains
from pipeline.composition.fit import triplets
from pipeline.extraction.fitting.triplets import triplets_of
from pipeline.training.data import session_features, sessions_digest
from pipeline.training.sampling import Histories
from tests.pipeline.training.sessions import sessions, write_store
from tests.worlds import world, write_backbone

NEXT = sessions((2, 3, 4))
FINAL = tuple(s.model_copy(update={"turn_targets": "final"}) for s in NEXT)


@pytest.mark.parametrize("given", [NEXT, FINAL], ids=["next", "final"])
def test_training_targets_are_the_turns_targets(tmp_path: Path, given: tuple[Session, ...]) -> None:
    store = write_store(tmp_path / "toy", NEXT)
    found = session_features(store, given)
    one = session_features(store, NEXT)
    for number, session in enumerate(given):
        n = len(session.turns)
        made, follows = found.targets[found.target_rows[number, :n]], one.targets[one.target_rows[number, :n]]
        wanted = follows if session.turn_targets == "next" else follows[-1:].expand(n, -1)
        assert made.equal(wanted)
    assert {(t.reference, t.target) for t in triplets_of(given)} == {p for s in given for p in s.pairs}


def test_a_composer_is_fitted_on_the_turns_targets(tmp_path: Path) -> None:
    data = world()
    backbone = write_backbone(tmp_path / "backbone", data)
    image = {
        row: name
        for name, row in zip(
            data.images, backbone.find("image", stack_keys(map(caption_key, data.images))), strict=True
        )
    }
    for kind in ("next", "final"):
        given = [s.model_copy(update={"turn_targets": kind}) for s in data.split("train")]
        found = triplets(backbone, given)
        pairs = {(image[a], image[b]) for a, b in zip(found.reference, found.target, strict=True)}
        assert pairs == {pair for s in given for pair in s.pairs}


def test_a_run_of_other_turn_targets_is_another_run(tmp_path: Path) -> None:
    assert sessions_digest(NEXT) != sessions_digest(FINAL)


def test_leaks_count_pairs_to_the_final_target() -> None:
    def exposure(kind: str) -> str:
        train = NEXT[1].model_copy(update={"turn_targets": kind})  # of three turns: i10, i11, i12 -> i13
        shorter = {"id": "t", "split": "test", "turns": train.turns[:1], "target": "i13"}
        both = (train, train.model_copy(update=shorter))
        return pair_exposure(Dataset(name="x", images={}, sessions=both, galleries=()))["t"]

    assert (exposure("next"), exposure("final")) == ("clean", "last_seen")


def test_no_history_is_made_of_pairs_that_form_no_chain(tmp_path: Path) -> None:
    store = write_store(tmp_path / "toy", NEXT)
    Histories(session_features(store, NEXT))
    with pytest.raises(ManifestError, match=r"key training\.recombine: the turns of session 's0' lead to its final"):
        Histories(session_features(store, FINAL))
    others, found = _other_chains(session_features(store, FINAL), 0.5, 2)
    assert not others and not len(found)
