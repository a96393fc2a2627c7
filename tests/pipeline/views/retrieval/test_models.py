"""Trained runs, live queries and pictures, on the small demo."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

import pipeline
from manifests.errors import ManifestError
from manifests.identity import pair_key, stack_keys, text_key
from pipeline.evaluation.files import load_results
from pipeline.extraction.extractors import load_extractor
from pipeline.views.retrieval.pictures import Pictures
from pipeline.views.retrieval.queries import Queries, QueryError
from pipeline.views.retrieval.testbed import TestBed, overlap
from pipeline.views.retrieval.trained import runs_by_id, trained_runs
from tests.pipeline.small_demo import Project


def test_the_ranks_are_those_of_the_evaluation(demo: Project) -> None:
    experiment = demo.experiment()
    bed = TestBed(experiment)
    models, missing = trained_runs(experiment)
    assert missing == [] and [m.label for m in models] == ["last", "avg", "cat", "ewma", "cm_ntm"]
    for trained in models:
        wanted = load_results(trained.folder.path / "results.h5")
        assert [s.id for s in bed.sessions] == list(wanted.session_ids)
        found = bed.ranks(bed.finals(trained))
        assert found.tolist() == wanted.ranks.tolist()
        top = bed.top(bed.finals(trained), 5)
        for number, session in enumerate(bed.sessions):
            assert (session.target in [bed.image(number, row) for row in top[number]]) == (found[number] <= 5)


def test_no_run_names_the_place_of_the_installed_project(demo: Project) -> None:
    """Another checkout, or the next version of Python, reads it too."""
    place = str(Path(pipeline.__file__).parent)
    records = list(demo.folder.glob("runs/**/*.json"))
    assert {"run.json", "summary.json"} <= {path.name for path in records}
    assert [path for path in records if place in path.read_text(encoding="utf-8")] == []


def test_the_rank_correlation_is_spearmans(demo: Project) -> None:
    bed = TestBed(demo.experiment())
    models, _ = trained_runs(bed.experiment)
    one, other = bed.finals(models[0]), bed.finals(models[-1])
    found = bed.spearman(one, other)
    for number in (0, 11, 26):
        index = bed.indexes[bed.sessions[number].category]
        scores = [index.scores(q[number])[0].numpy() for q in (one, other)]
        assert found[number] == pytest.approx(spearmanr(*scores).statistic, abs=1e-9)


def test_overlap_counts_what_two_lists_share() -> None:
    assert overlap(np.array([[1, 2, 3, 4], [1, 2, 3, 4]]), np.array([[4, 3, 9, 8], [5, 6, 7, 8]])).tolist() == [
        0.5,
        0.0,
    ]


def test_a_run_is_found_by_its_first_digits_and_a_wrong_id_names_those_there_are(demo: Project) -> None:
    experiment = demo.experiment()
    known = trained_runs(experiment)[0]
    (found,) = runs_by_id(experiment, [known[-1].run[:6]])
    assert (found.run, found.name) == (known[-1].run, "cm_ntm")
    with pytest.raises(ManifestError, match=known[0].run):
        runs_by_id(experiment, ["ffffffff"])
    with pytest.raises(ManifestError, match="4 digits or more"):
        runs_by_id(experiment, [known[0].run[:2]])


def test_a_live_query_is_the_stored_one(demo: Project) -> None:
    """The composer here gives what stage 1 wrote, from cached rows and from the extractor."""
    store = demo.workspace.store(demo.spec, demo.dataset)
    extractor = load_extractor(demo.spec, "cpu")
    cached, live = (Queries(demo.spec, demo.dataset, demo.workspace, e) for e in (None, extractor))
    session = demo.dataset.split("test")[0]
    for turn in session.turns:
        key = pair_key(store.catalogue()[turn.reference], text_key(turn.text))
        wanted = torch.from_numpy(store.gather("query", store.find("query", stack_keys([key])))[0])
        assert torch.allclose(cached.query(turn.reference, turn.text), wanted, atol=1e-6)
        assert torch.allclose(live.query(turn.reference, f"  {turn.text} "), wanted, atol=1e-6)
    assert extractor.calls == 0, "a cached text went through the model"
    fresh = live.text_row("a shirt for a penguin")
    assert (
        extractor.calls == 1 and np.array_equal(live.text_row("a shirt for a penguin"), fresh) and extractor.calls == 1
    )


def test_an_uploaded_catalogue_image_has_its_own_row(demo: Project) -> None:
    queries = Queries(demo.spec, demo.dataset, demo.workspace, load_extractor(demo.spec, "cpu"))
    image = demo.dataset.split("test")[0].target
    with Image.open(demo.dataset.images_root / demo.dataset.images[image].file) as picture:
        row = queries.upload(picture.convert("RGB"))
    assert np.abs(row - queries.image_row(image)).max() < 2e-3  # the stored row is rounded to float16


def test_without_an_extractor_an_unknown_text_names_the_way_out(demo: Project) -> None:
    queries = Queries(demo.spec, demo.dataset, demo.workspace)
    with pytest.raises(QueryError, match="--cached-only"):
        queries.query(demo.dataset.split("test")[0].target, "a shirt for a penguin")
    with pytest.raises(QueryError, match="nowhere"):
        queries.query("nowhere", "red")
    assert not queries.knows("nowhere")


def test_thumbnails_are_small_jpegs_and_words_stand_in(demo: Project, words: Project) -> None:
    pictures, image = Pictures(demo.dataset, kept=1), demo.dataset.split("test")[0].target
    with Image.open(io.BytesIO(pictures.thumbnail(image, 32))) as made:
        assert made.format == "JPEG" and max(made.size) == 32
    assert pictures.thumbnail(image, 16) != pictures.thumbnail(image, 32)
    assert pictures.thumbnail("nowhere", 32) is None
    assert next(iter(demo.dataset.attributes[image].values()))[0] in pictures.words(image)
    captions = Pictures(words.dataset)
    first = next(iter(words.dataset.images))
    assert captions.thumbnail(first, 32) is None and captions.words(first) == words.dataset.images[first].caption
