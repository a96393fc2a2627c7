"""Near-duplicate search: exact, block by block, and what it says of sessions."""

from __future__ import annotations

import numpy as np
import pytest

from manifests.schema import Dataset, Image, Session, Turn
from pipeline.analysis.leak_report import near_overlaps, near_pairs, train_twins
from pipeline.training.errors import FeatureError


def session(name: str, split: str, path: str) -> Session:
    turns = tuple(Turn(reference=image, captions=("x",)) for image in path[:-1])
    return Session(id=name, category="c", split=split, turns=turns, target=path[-1])  # type: ignore[arg-type]


@pytest.mark.parametrize("held", [1, 60, 1 << 24])
def test_all_pairs_are_found_in_any_blocks(held: int) -> None:
    rng = np.random.default_rng(0)
    candidates = rng.normal(size=(50, 4)).astype(np.float32)
    queries = np.concatenate([candidates[[7, 3]] * 5, rng.normal(size=(9, 4)), np.zeros((1, 4))]).astype(np.float32)
    units = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30) for rows in (queries, candidates)]
    cosines = units[0].astype(np.float64) @ units[1].T.astype(np.float64)
    rows, columns, found = near_pairs(queries, candidates, 0.8, held)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == set(
        zip(*map(list, np.nonzero(cosines >= 0.8)), strict=True)
    )
    np.testing.assert_allclose(found, cosines[rows, columns], atol=1e-5)
    exact = near_pairs(queries, candidates, 1.0, held)
    assert set(zip(exact[0].tolist(), exact[1].tolist(), strict=True)) == {(0, 7), (1, 3)}


def test_sessions_of_near_duplicates() -> None:
    """A is nearly a, and B nearly b: the pair A -> B was trained on, though neither of its images was."""
    dataset = Dataset(
        name="d",
        images={i: Image(id=i) for i in "abcABz"},
        sessions=(
            session("train", "train", "ab"),
            session("near", "test", "AB"),
            session("target", "test", "cB"),
            session("exact", "test", "ab"),
            session("clean", "test", "cz"),
        ),
        galleries=(),
    )
    eye = np.eye(4, dtype=np.float32)
    features = {"a": eye[0], "b": eye[1], "c": eye[2], "A": eye[0] + 0.05 * eye[3], "B": eye[1] + 0.05 * eye[3]}
    twins = train_twins(dataset, features, 0.99)
    assert {image: list(near) for image, near in twins.items()} == {"A": ["a"], "B": ["b"]}
    assert near_overlaps(dataset, twins) == {
        "near": {"near target", "near last pair"},
        "target": {"near target"},
        "exact": {"near target", "near last pair"},
        "clean": frozenset(),
    }
    assert train_twins(dataset, features, 1.0) == {}


def test_wrong_input_is_named() -> None:
    rows = np.ones((2, 3), np.float32)
    with pytest.raises(FeatureError, match="NaN"):
        near_pairs(rows * np.nan, rows, 0.9)
