"""Ranked lists out and in: an exact round trip, the same leak blocks and tests, and refused lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cli import main
from manifests.errors import ManifestError, Problems
from pipeline.evaluation.files import load_results, load_summary
from pipeline.evaluation.ranked_files import FILES, cosine_orders, read_ranked
from pipeline.evaluation.ranking import ranks
from pipeline.jobs.ranked import _refuse_names
from tests.caption_project import CAPTIONS, call, caption_project
from tests.worlds import world

SPEC = 'name = "ranked"\nseeds = [0]\n' + CAPTIONS + "[training]\nepochs = 2\n[models.last]\n[models.ewma]\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = caption_project(tmp_path_factory.mktemp("ranked"), "ranked", SPEC)
    done = call(folder, "run", str(folder / "ranked.toml"))
    assert done.exit_code == 0, done.output
    return folder


def results_file(project: Path, model: str) -> Path:
    (found,) = (project / "out" / "runs").rglob(f"{model}/*/results.h5")
    return found


def test_the_position_of_a_target_is_its_rank() -> None:
    """With equal candidates among the others, and a query that ties with all of them."""
    rng = np.random.default_rng(0)
    candidates = rng.standard_normal((40, 8)).astype(np.float32)
    candidates[5] = candidates[6] = candidates[7]
    queries, targets = rng.standard_normal((30, 8)).astype(np.float32), rng.integers(0, 40, 30)
    queries[3] = 0
    targets[:4] = (5, 6, 7, 5)
    orders = list(cosine_orders(queries, candidates, targets, 40))
    places = [int(np.flatnonzero(rows == t)[0]) + 1 for (rows, _), t in zip(orders, targets, strict=True)]
    assert places == ranks(queries, candidates, targets).tolist()


@pytest.mark.parametrize("form", ["trec", "jsonl", "cirr", "circo"])
def test_what_is_written_is_read_back_exactly(project: Path, tmp_path: Path, form: str) -> None:
    spec = str(project / "ranked.toml")
    words = ("--model", "ewma", "--format", form, "--to", str(tmp_path))
    assert call(project, "results", spec, *words).exit_code == 0
    file = tmp_path / FILES[form]
    assert json.loads((tmp_path / "about.json").read_text())["dataset"] == "world/test"
    done = call(project, "evaluate", spec, "--ranked", str(file), "--name", f"again-{form}", "--json")
    assert done.exit_code == 0, done.output
    there = load_results(project / "out" / "ranked" / "world" / f"again-{form}" / "results.h5")
    run = load_results(results_file(project, "ewma"))
    assert dict(zip(there.session_ids, there.ranks, strict=True)) == dict(zip(run.session_ids, run.ranks, strict=True))
    assert there.metrics() == run.metrics()


def test_beir_folders_hold_features_that_give_the_run(project: Path, tmp_path: Path) -> None:
    spec = str(project / "ranked.toml")
    assert call(project, "results", spec, "--model", "ewma", "--format", "beir", "--to", str(tmp_path)).exit_code == 0
    run = load_results(results_file(project, "ewma"))
    for folder in (p for p in tmp_path.iterdir() if p.is_dir()):
        corpus = [json.loads(line)["_id"] for line in (folder / "corpus.jsonl").read_text().splitlines()]
        asked = [json.loads(line)["_id"] for line in (folder / "queries.jsonl").read_text().splitlines()]
        qrels = [line.split("\t") for line in (folder / "qrels" / "test.tsv").read_text().splitlines()]
        assert qrels[0] == ["query-id", "corpus-id", "score"]
        targets = [corpus.index(document) for _, document, _ in qrels[1:]]
        found = ranks(np.load(folder / "queries.npy"), np.load(folder / "corpus.npy"), np.array(targets))
        wanted = dict(zip(run.session_ids, run.ranks, strict=True))
        assert found.tolist() == [wanted[i] for i in asked]


def test_beir_folders_are_separate_names_on_any_disk() -> None:
    data = world()
    _refuse_names(data, ["dress", "shirt"])
    tabbed = data.sessions[-1].model_copy(update={"id": "a\tb"})
    with pytest.raises(ManifestError) as error:
        _refuse_names(data.model_copy(update={"sessions": (tabbed,)}), ["Dress", "dress", "../out"])
    text = str(error.value)
    assert "category 'dress': the folder of category 'Dress' is the same one on a disk that ignores case" in text
    assert "category '../out': a category becomes a folder name" in text
    assert "session 'a\\tb': qrels are lines with tabs" in text


def test_a_number_beyond_floats_is_no_score(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"session": "s", "images": ["i"], "scores": [' + "9" * 400 + "]}\n")
    problems = Problems(tmp_path)
    assert read_ranked(tmp_path / "a.jsonl", problems) == [] and "finite scores" in str(problems.found[0])


def test_a_short_list_keeps_the_recalls_up_to_its_length(project: Path, tmp_path: Path) -> None:
    spec = str(project / "ranked.toml")
    assert call(project, "results", spec, "--model", "last", "--to", str(tmp_path), "--top", "5").exit_code == 0
    done = call(project, "evaluate", spec, "--ranked", str(tmp_path / "run.trec"), "--name", "short")
    assert done.exit_code == 0 and "MRR is a lower bound" in done.stderr
    there = load_results(project / "out" / "ranked" / "world" / "short" / "results.h5").metrics()
    run = load_results(results_file(project, "last")).metrics()
    for subset, metrics in run.items():
        assert there[subset]["overall"]["R@5"] == metrics["overall"]["R@5"]


def test_a_list_is_a_row_of_a_table_and_is_tested_against_a_run(project: Path, tmp_path: Path) -> None:
    spec = str(project / "ranked.toml")
    assert call(project, "results", spec, "--model", "ewma", "--format", "jsonl", "--to", str(tmp_path)).exit_code == 0
    file = str(tmp_path / "run.jsonl")
    words = ("--ranked", file, "--name", "theirs", "--against", "last", "--trained-on", "world")
    done = call(project, "evaluate", spec, *words)
    assert done.exit_code == 0 and "p sessions: paired bootstrap" in done.stdout, done.output
    table = tmp_path / "mine.toml"
    table.write_text(
        f'kind = "results"\ntitle = "T"\nrun = "{spec}"\nseeds = [0]\ntested = "ewma"\n'
        '[[rows]]\nmodel = "last"\nlabel = "Last"\ndeterministic = true\n[[rows]]\nmodel = "ewma"\nlabel = "EWMA"\n'
    )
    shown = call(project, "table", str(table), "--ranked", "theirs", "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    rows = {row["label"]: row for row in found["blocks"][0]["rows"]}
    values = [[cell["value"] for cell in rows[label]["cells"]] for label in ("theirs", "EWMA")]
    assert values[0] == values[1] and values[0][0] is not None
    assert any("CONTAMINATED" in note for note in found["footnotes"])
    missing = call(project, "table", str(table), "--ranked", "thiers")
    assert missing.exit_code == 3 and "did you mean 'theirs'" in missing.stderr


def test_a_score_does_not_outlive_its_sessions(project: Path, tmp_path: Path) -> None:
    from manifests.load import load_dataset, load_spec
    from manifests.views import WHOLE
    from pipeline.core.binding import StaleError
    from pipeline.core.workspace import Workspace
    from pipeline.jobs.ranked import RankedFolder

    spec = str(project / "ranked.toml")
    assert call(project, "results", spec, "--model", "last", "--to", str(tmp_path)).exit_code == 0
    assert call(project, "evaluate", spec, "--ranked", str(tmp_path / "run.trec"), "--name", "old").exit_code == 0
    dataset = load_dataset(load_spec(spec), project / "data")
    folder = RankedFolder.of(Workspace(project / "out"), dataset, "old")
    assert (
        folder.load(dataset, WHOLE)["model"] == "old" and load_summary(folder.folder / "summary.json")["seed"] is None
    )
    fewer = dataset.model_copy(update={"sessions": dataset.sessions[:-1]})
    with pytest.raises(StaleError, match="scored on other sessions"):
        folder.load(fewer, WHOLE)


def test_lists_that_cannot_be_scored_are_refused_with_every_problem(project: Path, tmp_path: Path) -> None:
    spec, dataset = str(project / "ranked.toml"), world()
    session = dataset.split("test")[0]
    gallery = [i for g in dataset.galleries if (g.category, g.split) == (session.category, "test") for i in g.images]
    lists = {
        "session": [{"session": session.id[:-1] + "x", "images": gallery[:2]}],
        "image": [{"session": session.id, "images": [gallery[0], gallery[1] + "x"]}],
        "twice": [{"session": session.id, "images": [gallery[0], gallery[0]]}],
        "again": [{"session": session.id, "images": gallery[:2]}] * 2,
        "few": [{"session": session.id, "images": gallery[:2]}],
        "scores": [{"session": session.id, "images": gallery[:2], "scores": [1.0, "x"]}],
    }
    messages = {
        "session": "no test session",
        "image": "images are not in the gallery",
        "twice": "is listed twice",
        "again": "is listed before",
        "few": "test sessions have no list",
        "scores": "as many finite scores",
    }
    for name, rows in lists.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = call(project, "evaluate", spec, "--ranked", str(file))
        assert done.exit_code == 4 and messages[name] in done.stderr, (name, done.output)
    done = call(project, "evaluate", spec, "--ranked", str(tmp_path / "few.jsonl"), "--partial", "--name", "few")
    assert done.exit_code == 0, done.output
    (tmp_path / "bad.trec").write_text(f"{session.id} Q0 {gallery[0]} 1 nan x\n\none two\n")
    done = call(project, "evaluate", spec, "--ranked", str(tmp_path / "bad.trec"))
    assert done.exit_code == 4 and "line 1" in done.stderr and "line 3" in done.stderr
    wrong = CliRunner().invoke(main, ["evaluate", spec, "--partial"])
    assert wrong.exit_code == 2 and "--partial is an option of --ranked FILE" in wrong.output


def test_names_with_blanks_survive_a_trec_file(tmp_path: Path) -> None:
    from manifests.errors import Problems
    from pipeline.evaluation.ranked_files import Ranked, read_ranked, write_ranked

    lists = [Ranked("a session/1%20", ("an image.jpg", "é\u2028x"), (0.1, -3.0))]
    write_ranked(tmp_path / "run.trec", "trec", lists, "tag")
    (found,) = read_ranked(tmp_path / "run.trec", Problems("x"))
    assert (found.session, found.images) == (lists[0].session, lists[0].images)
    assert np.float32(found.scores).tolist() == np.float32((0.1, -3.0)).tolist()  # type: ignore[arg-type]
