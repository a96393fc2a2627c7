"""Evaluation over a real store: galleries, subsets, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache import Store, StoreWriter
from manifests.identity import caption_key, stack_keys
from manifests.schema import Gallery, Session, Turn
from pipeline.evaluation.evaluate import Candidates, EvaluationError, evaluate, load_candidates
from pipeline.evaluation.ranking import RankingError

IMAGES = tuple("abcdefgh")


def feature(image: str) -> np.ndarray:
    return np.random.default_rng(ord(image)).normal(size=12).astype(np.float32)


def session(name: str, category: str, target: str) -> Session:
    turn = Turn(reference="a", captions=("longer",))
    return Session(id=name, category=category, split="test", turns=(turn,), target=target)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Targets of a..g in float16; h has failed, and no one has heard of i."""
    with StoreWriter(tmp_path / "store", dataset="d", extractor="x", fields={"weights": "w"}, execution={}) as writer:
        writer.bind({image: caption_key(image) for image in IMAGES})
        writer.fail("target", "h", "encode", "truncated file")
        rows = np.stack([feature(image) for image in IMAGES[:-1]]).astype(np.float16)
        writer.commit("target", stack_keys(caption_key(image) for image in IMAGES[:-1]), rows)
    return Store.open(tmp_path / "store")


def galleries() -> list[Gallery]:
    return [
        Gallery(category="dress", split="test", images=tuple("hcbai")),
        Gallery(category="shirt", split="test", images=tuple("defg")),
    ]


def test_candidates_keep_the_gallerys_order_and_name_what_has_no_feature(store: Store) -> None:
    found = load_candidates(store, galleries())
    assert found["dress"].images == ("c", "b", "a")
    assert found["dress"].dropped == ("h", "i")
    assert found["dress"].features.dtype == np.float32
    np.testing.assert_allclose(found["dress"].features[2], feature("a"), rtol=1e-3)
    assert found["shirt"].dropped == ()
    assert found["shirt"].index == {"d": 0, "e": 1, "f": 2, "g": 3}


def test_each_session_is_ranked_in_its_own_category(store: Store) -> None:
    sessions = [session("s0", "dress", "b"), session("s1", "shirt", "g"), session("s2", "dress", "a")]
    queries = np.stack([feature("b"), -feature("g"), feature("a")])
    found = evaluate(queries, sessions, load_candidates(store, galleries()))
    assert found.ranks.tolist() == [1, 4, 1]
    assert (found.session_ids, found.target_ids) == (("s0", "s1", "s2"), ("b", "g", "a"))
    assert found.metrics()["all"]["overall"]["R@1"] == 50
    assert found.metrics()["all"]["dress"] == {
        "n": 2,
        **dict.fromkeys(("R@1", "R@5", "R@8", "R@10", "R@50", "MRR", "mean"), 100.0),
    }


def test_subsets_are_counted_apart(store: Store) -> None:
    sessions = [session("s0", "dress", "b"), session("s1", "dress", "c"), session("s2", "shirt", "d")]
    queries = np.stack([feature("b"), -feature("c"), feature("d")])
    members = {"all": {"s0", "s1", "s2"}, "last pair unseen": {"s1", "s2", "elsewhere"}, "no pair seen": set()}
    metrics = evaluate(queries, sessions, load_candidates(store, galleries()), members).metrics()
    assert list(metrics) == ["all", "last pair unseen", "no pair seen"]
    assert [metrics[name]["overall"]["n"] for name in metrics] == [3, 2, 0]
    assert metrics["last pair unseen"]["dress"]["R@1"] == 0
    assert metrics["no pair seen"]["dress"] == {"n": 0}


def test_sessions_together_or_categories_apart(store: Store) -> None:
    sessions = [session("s0", "dress", "b"), session("s1", "dress", "c"), session("s2", "shirt", "d")]
    queries = np.stack([feature("b"), feature("c"), -feature("d")])
    candidates = load_candidates(store, galleries())
    assert evaluate(queries, sessions, candidates).metrics()["all"]["overall"]["R@1"] == 50
    micro = evaluate(queries, sessions, candidates, averaging="sessions")
    assert micro.metrics()["all"]["overall"]["R@1"] == pytest.approx(200 / 3)


def test_a_session_without_its_target_is_skipped_and_named(store: Store) -> None:
    sessions = [session("gone", "dress", "h"), session("kept", "dress", "a"), session("foreign", "shirt", "a")]
    queries = np.stack([feature("h"), feature("a"), feature("a")])
    found = evaluate(queries, sessions, load_candidates(store, galleries()), skipped={"early": "no query row"})
    assert found.session_ids == ("kept",)
    assert found.skipped == {
        "early": "no query row",
        "gone": "its target image 'h' has no feature in the store",
        "foreign": "its target image 'a' is not in the gallery of 'shirt'",
    }
    summary = found.summary(run="r", seed=3)
    assert summary["sessions"] == 1
    assert len(summary["skipped"]) == 3
    assert summary["galleries"]["dress"] == {"images": 3, "dropped": ["h", "i"]}
    assert (summary["run"], summary["seed"], summary["unit"]) == ("r", 3, "percent")


def test_nothing_left_to_evaluate_is_an_error(store: Store) -> None:
    candidates = load_candidates(store, galleries())
    with pytest.raises(EvaluationError, match=r"gone: its target image 'h' has no feature"):
        evaluate(feature("a")[None], [session("gone", "dress", "h")], candidates)
    with pytest.raises(EvaluationError, match=r"session 's': no gallery of category 'hat'; there are: dress, shirt"):
        evaluate(feature("a")[None], [session("s", "hat", "a")], candidates)


def test_a_diverged_session_is_named() -> None:
    candidates = {"dress": Candidates(("a",), feature("a")[None])}
    with pytest.raises(RankingError, match="session 's1'"):
        evaluate(
            np.stack([feature("a"), feature("a") * np.nan]),
            [session("s0", "dress", "a"), session("s1", "dress", "a")],
            candidates,
        )
