"""The pair-clean validation cut: its properties on any sessions, and what it does to the real ones."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import ManifestError
from manifests.schema import Dataset, Session, Turn, Validation
from manifests.validation import pair_groups, split_validation


def session(name: str, path: list[int], category: str = "dress") -> Session:
    turns = tuple(Turn(reference=f"i{n}", captions=("x",)) for n in path[:-1])
    return Session(id=name, category=category, split="train", turns=turns, target=f"i{path[-1]}")


@st.composite
def session_lists(draw: st.DrawFn) -> list[Session]:
    images = draw(st.integers(3, 60))  # few images: large groups; many: small ones
    paths = draw(st.lists(st.lists(st.integers(0, images), min_size=3, max_size=5), max_size=60))
    categories = draw(st.lists(st.sampled_from(["dress", "shirt"]), min_size=len(paths), max_size=len(paths)))
    return [session(f"s{n}", path, c) for n, (path, c) in enumerate(zip(paths, categories, strict=True))]


@given(session_lists(), st.floats(0, 0.5), st.integers(0, 5))
def test_any_cut(sessions: list[Session], fraction: float, seed: int) -> None:
    try:
        fit, validation = split_validation(sessions, fraction, seed)
    except ManifestError as error:
        assert fraction > 0 and "leaves no validation session" in str(error)
        return
    assert not {p for s in fit for p in s.pairs} & {p for s in validation for p in s.pairs}
    order = {s.id: n for n, s in enumerate(sessions)}
    assert sorted([*fit, *validation], key=lambda s: order[s.id]) == sessions
    for part in (fit, validation):
        assert [order[s.id] for s in part] == sorted(order[s.id] for s in part)
    sizes, taken = Counter(s.category for s in sessions), Counter(s.category for s in validation)
    assert all(taken[c] <= round(n * fraction) for c, n in sizes.items())
    assert (fit, validation) == split_validation(sessions, fraction, seed)


@given(session_lists(), st.randoms())
def test_the_order_of_the_sessions_does_not_matter(sessions: list[Session], random: object) -> None:
    shuffled = list(sessions)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    try:
        expected = {s.id for s in split_validation(sessions, 0.3, 0)[1]}
    except ManifestError:
        return
    assert {s.id for s in split_validation(shuffled, 0.3, 0)[1]} == expected


def test_groups_follow_pairs_through_other_sessions() -> None:
    sessions = [session("a", [0, 1, 2]), session("b", [9, 0, 1]), session("c", [5, 9, 0]), session("d", [2, 1, 0])]
    assert pair_groups(sessions) == [[0, 1, 2], [3]]


def test_a_validation_part_without_a_common_image() -> None:
    chains = [session(f"s{n}", [n % 10, n + 1000, n + 2000]) for n in range(60)]  # ten groups of six
    text_only = Session(
        id="words", category="dress", split="train", turns=(Turn(captions=("a",)), Turn(captions=("b",))), target="5000"
    )
    images = lambda part: {i for s in part for pair in s.pairs for i in pair} - {"no image"}  # noqa: E731
    fit, held = split_validation([*chains, text_only], 0.2, 0, disjoint="images")
    assert len(held) in (7, 12) and not images(fit) & images(held)
    fit, held = split_validation([*chains, text_only], 0.2, 0)
    assert images(fit) & images(held)
    assert Validation(fraction=0.1).model_dump() == {"fraction": 0.1, "seed": 0}  # identities of earlier runs
    assert Validation(disjoint="images").model_dump()["disjoint"] == "images"


def test_a_seed_changes_the_cut() -> None:
    sessions = [session(f"s{n}", [3 * n, 3 * n + 1, 3 * n + 2]) for n in range(100)]
    cuts = {tuple(s.id for s in split_validation(sessions, 0.1, seed)[1]) for seed in range(4)}
    assert len(cuts) == 4 and {len(cut) for cut in cuts} == {10}


def test_one_giant_group_is_refused_and_zero_is_not() -> None:
    sessions = [session(f"s{n}", [0, 1, n]) for n in range(20)]
    with pytest.raises(ManifestError, match=r"the smallest group of sessions .* has 20: use a larger fraction"):
        split_validation(sessions, 0.2, 0)
    assert split_validation(sessions, 0, 0) == (tuple(sessions), ())
    assert split_validation([], 0.2, 0) == ((), ())
    with pytest.raises(ValueError, match="fraction"):
        split_validation(sessions, 1.0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_on_multi_turn_fashioniq(mt_fashioniq: Dataset, seed: int) -> None:
    train = mt_fashioniq.split("train")
    assert max(map(len, pair_groups(train))) == 18  # no giant group: any fraction can be met
    fit, validation = split_validation(train, 0.1, seed)
    assert not {p for s in fit for p in s.pairs} & {p for s in validation for p in s.pairs}
    sizes, taken = Counter(s.category for s in train), Counter(s.category for s in validation)
    assert all(0.0985 < taken[category] / sizes[category] < 0.1015 for category in sizes)
    lengths = [Counter(len(s.turns) for s in part) for part in (fit, validation)]
    for turns in lengths[0] | lengths[1]:  # lengths as in the rest, within chance
        assert abs(lengths[0][turns] / len(fit) - lengths[1][turns] / len(validation)) < 0.05, turns
