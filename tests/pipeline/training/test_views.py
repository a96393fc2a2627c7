"""Views: what goes into a model when only some sessions, or only the last turns of each, are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cache import Store, StoreWriter
from manifests.identity import pair_key, stack_keys, text_key
from manifests.schema import Session
from manifests.views import View
from pipeline.training.data import SessionFeatures, session_features
from pipeline.training.errors import MissingFeaturesError
from pipeline.training.views import view_features
from tests.pipeline.training.sessions import image_key_of, row, sessions, write_store


def windows(store: Store, given: list[Session], turns: int) -> Store:
    """The store with ST + cat's queries of the last turns of these sessions as well."""
    wanted = [session.last(turns) for session in given]
    with StoreWriter(store.path, dataset="toy", extractor="random", fields={"width": 6}, execution={}) as writer:
        keys = stack_keys(pair_key(image_key_of(s.turns[0].reference), text_key(s.text)) for s in wanted)
        writer.commit("query", keys, torch.stack([torch.from_numpy(row(f"w{s.id}")) for s in wanted]).numpy())
    return Store.open(store.path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_store(tmp_path / "store", sessions())


@pytest.fixture
def features(store: Store) -> SessionFeatures:
    return session_features(store, sessions())  # of 2, 3, 2, 4, 3 turns


def queries(features: SessionFeatures, session: int) -> list[list[float]]:
    batch = features.batch(torch.tensor([session]))
    return batch.queries[0, : int(batch.lengths[0])].tolist()


def test_the_default_view_changes_nothing(features: SessionFeatures, store: Store) -> None:
    assert view_features(features, store, View()) is features
    assert view_features(features, store, View(last=4)) is features


def test_only_sessions_of_one_length(features: SessionFeatures, store: Store) -> None:
    seen = view_features(features, store, View(turns=3))
    assert [s.id for s in seen.sessions] == ["s1", "s4"]
    assert queries(seen, 1) == queries(features, 4)
    with pytest.raises(MissingFeaturesError, match="no session with features has 9 turns"):
        view_features(features, store, View(turns=9))


@pytest.mark.parametrize("last", [1, 2, 3])
def test_the_last_turns_of_each_session(features: SessionFeatures, store: Store, last: int) -> None:
    seen = view_features(features, store, View(last=last))
    assert seen.lengths.tolist() == [min(n, last) for n in (2, 3, 2, 4, 3)]
    assert seen.turns == last
    for session in range(5):
        assert queries(seen, session) == queries(features, session)[-last:]
    final = features.targets[features.target_rows[:, -1]]
    torch.testing.assert_close(seen.targets[seen.target_rows[:, -1]], final)


def test_concatenated_windows_are_rows_of_their_own(features: SessionFeatures, store: Store) -> None:
    view, everyone = View(turns=4, last=2), torch.tensor([0])
    with pytest.raises(MissingFeaturesError, match=r"run `extract` with windows = \[2\]"):
        view_features(features, store, view, concatenated=True)
    wide = windows(store, [s for s in sessions() if len(s.turns) == 4], 2)
    seen = view_features(features, wide, view, concatenated=True)
    assert [s.id for s in seen.sessions] == ["s3"]
    torch.testing.assert_close(seen.concatenated(everyone).queries[0, 0], torch.from_numpy(row("ws3")))
    last = view_features(features, store, View(turns=4, last=1), concatenated=True)  # is the last turn's own query
    torch.testing.assert_close(
        last.concatenated(everyone).queries[0, 0], features.batch(torch.tensor([3])).queries[0, 3]
    )


def test_a_session_without_its_window_is_named(features: SessionFeatures, store: Store) -> None:
    wide = windows(store, [sessions()[3]], 2)
    seen = view_features(features, wide, View(last=2), concatenated=True)
    assert [s.id for s in seen.sessions] == ["s0", "s2", "s3"]  # two turns are whole
    assert seen.skipped == ("s1", "s4")
    assert seen.reasons[0] == "session 's1': no query row for its last 2 turns' captions as one text"
