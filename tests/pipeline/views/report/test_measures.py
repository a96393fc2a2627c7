"""Retention and turn order, counted again by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.training.dialogue import Dialogue
from pipeline.views.report.order import interactive_order, logged_order
from pipeline.views.report.retention import CHANCE, exact_retention, known_requests, mean_of, meets, scored_retention
from pipeline.views.retrieval.queries import Queries
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import trained_runs
from tests.pipeline.small_demo import Project

K = 3


@pytest.fixture(scope="module")
def bed(demo: Project) -> TestBed:
    return TestBed(demo.experiment())


def test_the_target_has_all_that_the_demos_users_asked_for(demo: Project) -> None:
    requests = known_requests(demo.spec)
    assert requests is not None
    for session in demo.dataset.split("test"):
        assert len(requests[session.id]) == len(session.turns)
        assert all(meets(demo.dataset, session.target, request) for request in requests[session.id])
    early = [(s, requests[s.id][0]) for s in demo.dataset.split("test")]
    assert not all(meets(demo.dataset, s.turns[-1].reference, r) for s, r in early), "the shop forgets nothing"


def test_a_dataset_without_stories_has_no_known_requests(words: Project) -> None:
    assert known_requests(words.spec) is None


def test_absence_can_be_asked_for(demo: Project) -> None:
    every = demo.dataset.attributes.items()
    plain, field = next((i, f) for i, fields in every for f, words in fields.items() if not words)
    assert meets(demo.dataset, plain, {field: "none"}) and not meets(demo.dataset, plain, {field: "red"})
    assert not meets(demo.dataset, plain, {"colour": "none"})


def test_exact_retention_is_the_share_of_results_that_keep_every_earlier_wish(demo: Project, bed: TestBed) -> None:
    models, _ = trained_runs(bed.experiment)
    requests = known_requests(demo.spec)
    found = exact_retention(bed, models, requests, K)
    assert set(found.rows) == {m.label for m in models} | {CHANCE} and found.sessions == len(bed.sessions)
    for trained in models:
        index_top = bed.top(bed.finals(trained), K)
        shares, firsts, last = [], [], []
        for n, session in enumerate(bed.sessions):
            good = [
                all(meets(demo.dataset, bed.image(n, row), wish) for wish in requests[session.id][:-1])
                for row in index_top[n]
            ]
            shares.append(sum(good) / K)
            firsts.append(good[0])
            last.append(sum(meets(demo.dataset, bed.image(n, r), requests[session.id][-2]) for r in index_top[n]) / K)
        row = found.rows[trained.label]
        assert row[f"top-{K}: all earlier"].value == pytest.approx(100 * np.mean(shares))
        assert row["top-1: all earlier"].value == pytest.approx(100 * np.mean(firsts))
        assert row["1 turn ago"].value == pytest.approx(100 * np.mean(last))
    assert found.rows[CHANCE][f"top-{K}: all earlier"].value < 50


def test_scored_retention_ranks_the_gallery_by_the_earlier_text(demo: Project, bed: TestBed) -> None:
    models, _ = trained_runs(bed.experiment)
    backbone = demo.workspace.backbone(demo.spec, demo.dataset)
    found = scored_retention(bed, models[:1], backbone, K)
    queries = Queries(demo.spec, demo.dataset, demo.workspace)
    values = []
    top = bed.top(bed.finals(models[0]), K)
    for n, session in enumerate(bed.sessions):
        images = bed.candidates[session.category].images
        rows = np.stack([queries.image_row(i) for i in images])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        mine = []
        for turn in session.turns[:-1]:
            scores = rows @ queries.text_row(turn.text)
            places = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
            mine.append(100 * float(places[top[n]].mean()) / (len(images) - 1))
        values.append(np.mean(mine))
    assert found.rows["last"]["all earlier"].value == pytest.approx(np.mean(values), abs=0.2)
    assert found.rows["last"]["all earlier"].n == len(values)


def test_logged_order_an_average_has_none_and_the_last_turn_has_only_order(bed: TestBed) -> None:
    models, _ = trained_runs(bed.experiment)
    found = logged_order(bed, models, K)
    assert "cat" not in found.rows  # all captions in one text: no turns to permute
    average = found.rows["avg"]
    assert average[f"overlap@{K}"].value == pytest.approx(100)
    assert average["rank correlation"].value == pytest.approx(1)
    last = found.rows["last"]
    assert last[f"last turn kept: overlap@{K}"].value == pytest.approx(100)
    # the last turn of the reversed session is its first: its recall is that of the first query
    first = bed.ranks(bed.outputs(models[0])[:, 0])
    assert last[f"R@{K} reversed"].value == pytest.approx(100 * np.mean(first <= K))


def test_interactive_order_plays_each_dialogue_as_a_user_would(demo: Project, bed: TestBed) -> None:
    models, _ = trained_runs(bed.experiment)
    queries = Queries(demo.spec, demo.dataset, demo.workspace)
    found = interactive_order(bed, models, queries, K)
    assert found.sessions == len(bed.sessions) and not found.why_not
    trained = models[-1]
    overlaps = []
    for n, session in enumerate(bed.sessions):
        results = []
        for texts in ([t.text for t in session.turns], [t.text for t in session.turns][::-1]):
            dialogue, used = Dialogue(trained.model), [session.turns[0].reference]
            for text in texts:
                answer = dialogue.say(queries.query(used[-1], text))
                ranked = bed.indexes[session.category].search(answer, len(used) + 1).rows[0].tolist()
                used.append(next(i for i in (bed.image(n, row) for row in ranked) if i not in used))
            results.append(set(bed.indexes[session.category].search(answer, K).rows[0].tolist()))
        overlaps.append(len(results[0] & results[1]) / K)
    assert found.rows["cm_ntm"][f"final overlap@{K}"].value == pytest.approx(100 * np.mean(overlaps))


def test_a_mean_knows_its_interval_and_refuses_nothing_at_all() -> None:
    found = mean_of([1.0, 2.0, 3.0, 4.0])
    assert (found.value, found.n) == (2.5, 4) and found.half == pytest.approx(1.96 * np.std([1, 2, 3, 4], ddof=1) / 2)
    with pytest.raises(ValueError, match="no sessions"):
        mean_of([])


def test_a_joint_model_says_why_there_is_no_interactive_test(bed: TestBed) -> None:
    found = interactive_order(bed, [], None, K)
    assert "joint" in found.why_not and not found.rows and torch.is_tensor(bed.features.queries)
