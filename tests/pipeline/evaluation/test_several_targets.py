"""Several correct images per session (mAP@K), and galleries without the session's references."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from manifests.schema import Session, Turn
from pipeline.evaluation.evaluate import Candidates, evaluate
from pipeline.evaluation.metrics import average_precision


def by_definition(order: list[int], correct: set[int], k: int) -> float:
    """AP@K by walking down a ranked list, as CIRCO defines it."""
    hits, total = 0, 0.0
    for place, item in enumerate(order[:k], start=1):
        if item in correct:
            hits += 1
            total += hits / place
    return 100 * total / min(k, len(correct))


def test_average_precision_on_circos_ground_truths(shared_data: Path) -> None:
    queries = json.loads((shared_data / "circo/val.json").read_text())
    rng = np.random.default_rng(0)
    for query in queries:
        correct = set(query["gt_img_ids"])
        order = rng.permutation([*correct, *range(-40, 0)]).tolist()
        ranks = [order.index(image) + 1 for image in correct]
        for k in (5, 10, 25, 50):
            assert average_precision(ranks, k) == pytest.approx(by_definition(order, correct, k))


def made(sessions: int = 12, images: int = 30) -> tuple[np.ndarray, list[Session], Candidates]:
    rng = np.random.default_rng(1)
    names = tuple(f"i{n}" for n in range(images))
    found = []
    for n in range(sessions):
        first, second, target, more = rng.permutation(images)[:4]
        turns = (Turn(reference=names[first], captions=("x",)), Turn(reference=names[second], captions=("y",)))
        about = {"id": f"s{n}", "category": "c", "split": "test", "target": names[target]}
        found.append(Session(**about, turns=turns, also=(names[more],) if n % 2 else ()))
    candidates = rng.normal(size=(images, 6)).astype(np.float32)
    candidates[5] = candidates[6]  # an exact tie
    return rng.normal(size=(sessions, 6)).astype(np.float32), found, Candidates(names, candidates)


def orders(queries: np.ndarray, gallery: Candidates) -> np.ndarray:
    unit = gallery.features / np.linalg.norm(gallery.features, axis=1, keepdims=True)
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ unit.T


@pytest.mark.parametrize("references", ["kept", "removed"])
@pytest.mark.parametrize("scored", [False, True])
def test_ranks_and_precision(references: str, scored: bool) -> None:
    queries, sessions, gallery = made()
    scores = orders(queries, gallery)

    def score(rows: list[int], _: np.ndarray) -> np.ndarray:
        return scores[rows]

    found = evaluate(queries, sessions, {"c": gallery}, references=references, score=score if scored else None)
    for n, session in enumerate(sessions):
        gone = {t.reference for t in session.turns} - set(session.correct) if references == "removed" else set()
        kept = [i for i in range(len(gallery.images)) if gallery.images[i] not in gone]
        own = scores[n, gallery.index[session.target]]
        assert found.ranks[n] == sum(scores[n, i] >= own - 1e-6 for i in kept)
        ranks = [sum(scores[n, i] >= scores[n, gallery.index[c]] - 1e-6 for i in kept) for c in session.correct]
        assert found.extra["mAP@10"][n] == pytest.approx(average_precision(ranks, 10))
    summary = found.summary()
    assert summary["references"] == references
    assert summary["metrics"]["all"]["c"]["mAP@5"] == pytest.approx(found.extra["mAP@5"].mean())


def test_one_correct_image_has_no_precision() -> None:
    queries, sessions, gallery = made()
    alone = [s.model_copy(update={"also": ()}) for s in sessions]
    found = evaluate(queries, alone, {"c": gallery})
    assert found.extra == {} and "mAP@5" not in found.metrics()["all"]["c"]
    assert "also" not in alone[0].model_dump() and sessions[1].model_dump()["also"]
