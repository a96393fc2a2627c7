"""A whole dialog as one chat: its rows, its place beside cat in the last-turn views, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from manifests.errors import ManifestError
from manifests.identity import dialog_key, pair_key, stack_keys, text_key
from manifests.load import load_dataset, load_spec
from manifests.views import View
from pipeline.core.workspace import Workspace
from pipeline.evaluation.files import load_results
from pipeline.evaluation.ranking import ranks
from pipeline.extraction.extractors import load_extractor
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import make_run
from pipeline.jobs.stage2 import evaluate_run
from pipeline.training.errors import FeatureError
from pipeline.training.validate import embed
from tests.caption_project import call
from tests.pipeline.extraction.conftest import picture, save_clip
from tests.pipeline.extraction.small_mllm import save_qwen3vl

SPEC = """
name = "chats"
seeds = [0]
dialogs = true
windows = [2]
[dataset]
name = "jsonl"
folder = "own"
[extractor]
name = "mllm"
model = "{model}"
store_dtype = "float32"
min_pixels = 1024
max_pixels = 4096
[models.last]
[models.cat]
[models.st_history]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chats")
    own = root / "data" / "own"
    own.mkdir(parents=True)
    for n in range(6):
        picture(n, (30 + 5 * n, 40)).save(own / f"{n}.png")
    images = "".join(json.dumps({"id": f"i{n}", "file": f"{n}.png"}) + "\n" for n in range(6))
    (own / "images.jsonl").write_text(images)
    made = []
    for split in ("train", "test"):
        for n, length in enumerate((2, 3, 3)):
            turns = [{"reference": f"i{(n + t) % 6}", "captions": [f"is {split} {n}{t}"]} for t in range(length)]
            target = f"i{(n + length) % 6}"
            made.append({"id": f"{split}{n}", "category": "x", "split": split, "target": target, "turns": turns})
    (own / "sessions.jsonl").write_text("".join(json.dumps(s) + "\n" for s in made))
    (root / "chats.toml").write_text(SPEC.format(model=save_qwen3vl(root / "model")))
    done = call(root, "run", str(root / "chats.toml"))
    assert done.exit_code == 0, done.output
    return root


def experiment_of(project: Path) -> Experiment:
    spec = load_spec(str(project / "chats.toml"))
    return Experiment(spec, load_dataset(spec, project / "data"), Workspace(project / "out"), "cpu")


def rows_by_hand(project: Path, last: int | None) -> dict[str, np.ndarray]:
    """Session id -> the row of its chat, encoded alone."""
    spec = load_spec(str(project / "chats.toml"))
    extractor = load_extractor(spec, "cpu")
    made = {}
    for session in load_dataset(spec, project / "data").split("test"):
        window = session.last(last or len(session.turns))
        files = [project / "data" / "own" / f"{turn.reference[1:]}.png" for turn in window.turns]
        images = [extractor.prepare(Pillow.open(f).convert("RGB")) for f in files]
        chat = extractor.prepare_dialog([turn.text for turn in window.turns])
        made[session.id] = extractor.begin("query", [images], [chat]).numpy()[0]
    return made


def test_the_store_has_the_row_of_each_chat(project: Path) -> None:
    experiment = experiment_of(project)
    catalogue, store = experiment.store.catalogue(), experiment.store
    for session in experiment.dataset.split("test"):
        pairs = [pair_key(catalogue[t.reference], text_key(t.text)) for t in session.turns]
        (found,) = store.gather("query", store.find("query", stack_keys([dialog_key(pairs)])))
        np.testing.assert_allclose(found, rows_by_hand(project, None)[session.id], atol=1e-5)
    train = experiment.dataset.split("train")[1]
    pairs = [pair_key(catalogue[t.reference], text_key(t.text)) for t in train.turns]
    assert store.find("query", stack_keys([dialog_key(pairs)])).tolist() == [-1]


@pytest.mark.parametrize("last", [None, 1, 2])
def test_st_history_ranks_by_the_chat_of_its_view(project: Path, last: int | None) -> None:
    experiment, view = experiment_of(project), View(last=last)
    run = make_run(experiment.spec, "st_history", 0)
    evaluate_run(experiment, run, view)
    found = load_results(experiment.result_files(run, view).results)
    queries, gallery = rows_by_hand(project, last), experiment.candidates["x"]
    wanted = ranks(
        np.stack([queries[i] for i in found.session_ids]),
        gallery.features,
        np.array([gallery.index[t] for t in found.target_ids]),
    )
    assert found.ranks.tolist() == wanted.tolist()
    if last == 1:  # one turn is the single-turn query
        evaluate_run(experiment, make_run(experiment.spec, "last", 0), view)
        same = load_results(experiment.result_files(make_run(experiment.spec, "last", 0), view).results)
        assert same.ranks.tolist() == wanted.tolist()


def test_its_lists_are_written_like_any_other(project: Path, tmp_path: Path) -> None:
    spec = str(project / "chats.toml")
    assert call(project, "results", spec, "--model", "st_history", "--to", str(tmp_path)).exit_code == 0
    assert call(project, "evaluate", spec, "--ranked", str(tmp_path / "run.trec"), "--name", "again").exit_code == 0
    again = load_results(project / "out" / "ranked" / "own" / "again" / "results.h5")
    (run,) = (project / "out" / "runs").rglob("st_history/*/results.h5")
    assert again.ranks.tolist() == load_results(run).ranks.tolist()


def test_features_of_single_turns_are_not_taken_for_chats(project: Path) -> None:
    experiment = experiment_of(project)
    model = experiment.model(make_run(experiment.spec, "st_history", 0))
    with pytest.raises(FeatureError, match="st_history reads whole dialogs as one chat"):
        embed(model, experiment.test)


def test_without_the_rows_the_spec_s_key_is_named(project: Path, tmp_path: Path) -> None:
    spec = (project / "chats.toml").read_text().replace("dialogs = true", "dialogs = false")
    (tmp_path / "chats.toml").write_text(spec)
    done = call(project, "run", str(tmp_path / "chats.toml"), "--model", "st_history", out="plain")
    assert done.exit_code == 4 and "--set dialogs=true" in done.stderr, done.output


def test_an_extractor_without_chats_refuses_dialogs(project: Path, tmp_path: Path) -> None:
    words = ["extractor.name=clip", f"extractor.model={save_clip(tmp_path / 'clip')}", "composer.name=fusion"]
    sets = [word for w in words for word in ("--set", w)]
    done = call(project, "extract", str(project / "chats.toml"), *sets, out="clip")
    assert done.exit_code == ManifestError.exit_code and "does not encode a dialog as one query" in done.stderr
