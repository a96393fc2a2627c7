"""Leak columns: the three kinds of test session, and the counts on Multi-turn FashionIQ."""

from __future__ import annotations

import pytest

from manifests.leaks import SUBSETS, in_subset, overlaps, pair_exposure, subset_counts, subset_ids
from manifests.schema import Dataset, Image, Session, Split, Turn


def session(name: str, split: Split, path: str, category: str = "dress") -> Session:
    turns = tuple(Turn(reference=image, captions=("x",)) for image in path[:-1])
    return Session(id=name, category=category, split=split, turns=turns, target=path[-1])


@pytest.fixture
def dataset() -> Dataset:
    sessions = (
        session("train", "train", "abc"),
        session("shirt train", "train", "fgh", "shirt"),
        session("last", "test", "dbc"),
        session("earlier", "test", "abd"),
        session("clean", "test", "cba"),
        session("other category", "test", "egh"),
    )
    return Dataset(name="d", images={i: Image(id=i) for i in "abcdefgh"}, sessions=sessions, galleries=())


def test_exposure(dataset: Dataset) -> None:
    expected = {"last": "last_seen", "earlier": "seen", "clean": "clean", "other category": "clean"}
    assert pair_exposure(dataset) == expected
    assert pair_exposure(dataset, "dataset") == expected | {"other category": "last_seen"}


def test_subsets_are_nested(dataset: Dataset) -> None:
    assert subset_ids(dataset) == {
        "all": {"last", "earlier", "clean", "other category"},
        "last pair unseen": {"earlier", "clean", "other category"},
        "no pair seen": {"clean", "other category"},
    }
    assert subset_counts(dataset) == {"dress": {"all": 4, "last pair unseen": 3, "no pair seen": 2}}
    assert [in_subset("seen", subset) for subset in SUBSETS] == [True, True, False]


@pytest.mark.slow
def test_counts_on_the_real_sessions(mt_fashioniq: Dataset) -> None:
    assert subset_counts(mt_fashioniq) == {
        "dress": {"all": 1000, "last pair unseen": 589, "no pair seen": 347},
        "shirt": {"all": 681, "last pair unseen": 504, "no pair seen": 343},
        "toptee": {"all": 719, "last pair unseen": 526, "no pair seen": 404},
    }
    wide = subset_counts(mt_fashioniq, "dataset")
    assert [wide[c]["last pair unseen"] for c in wide] == [589, 502, 525]
    assert [wide[c]["no pair seen"] for c in wide] == [347, 341, 402]
    exposure = pair_exposure(mt_fashioniq)
    four = [s for s in mt_fashioniq.split("test") if len(s.turns) == 4]
    leaked = {c: sum(exposure[s.id] == "last_seen" for s in four if s.category == c) for c in mt_fashioniq.categories}
    assert leaked == {"dress": 89, "shirt": 20, "toptee": 22}


def test_overlaps_name_what_a_test_session_shares(dataset: Dataset) -> None:
    found = overlaps(dataset)
    assert found["last"] >= {"last pair", "any pair", "last query", "target image", "any image"}
    assert "last pair" not in found["earlier"] and "any pair" in found["earlier"]
    assert found["clean"] == {"last query", "target image", "any image", "last caption", "any caption"}
    assert found["other category"] == {"last caption", "any caption"}
    assert "last pair" in overlaps(dataset, "dataset")["other category"]


def test_captions_are_compared_without_case_and_spaces() -> None:
    turn = Turn(reference="a", captions=("Darker  Red",))
    train = Session(id="1", category="c", split="train", turns=(turn,), target="b")
    test = train.model_copy(
        update={"id": "2", "split": "test", "target": "z", "turns": (Turn(reference="y", captions=("darker red",)),)}
    )
    dataset = Dataset(name="d", images={}, sessions=(train, test), galleries=())
    assert overlaps(dataset) == {"2": {"last caption", "any caption"}}


@pytest.mark.slow
def test_overlaps_agree_with_the_leak_columns(mt_fashioniq: Dataset) -> None:
    found, exposure = overlaps(mt_fashioniq), pair_exposure(mt_fashioniq)
    assert {i for i, has in found.items() if "last pair" in has} == {i for i, e in exposure.items() if e == "last_seen"}
    assert {i for i, has in found.items() if "any pair" not in has} == {i for i, e in exposure.items() if e == "clean"}
