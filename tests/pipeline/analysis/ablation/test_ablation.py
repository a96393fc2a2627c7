"""Ablations, tables, figures, comparisons and searches as a user types them, on a small world and a tiny encoder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import Result

from cli import main
from manifests.load import load_dataset, load_spec
from pipeline.analysis.ablation.plan import plan_ablation
from pipeline.analysis.ablation.run import ablate, open_ablation
from pipeline.analysis.ablation.timing import read_timing, timing_file
from pipeline.analysis.tuning.search import tune
from pipeline.core.workspace import Workspace
from tests.caption_project import call, caption_project
from tests.pipeline.analysis.small_spec import SPEC
from tests.processes import forked

ROOT = Path(__file__).resolve().parents[4]
ABLATION = """
name = "grid"
run = "{spec}"
seeds = [0, 1, 2]
windows = [1]
views = [{{ }}, {{ turns = 2, last = 1 }}]
timing = true
[[grid]]
models = ["avg", "cat"]
[[grid]]
models = ["lstm"]
options = {{ hidden = [3, 4] }}
[[grid]]
models = ["no_such_model"]
optional = true
"""
# The run spec's own lstm has hidden = 4: the last row is point 4 of the grid without options of its own.
TABLE = """
kind = "results"
title = "A small table"
run = "{spec}"
ablation = "{ablation}"
seeds = [0, 1, 2]
turns = 2
tested = "lstm-4"
columns = [
    {{ category = "overall", label = "Overall", metrics = ["R@5", "mean"] }},
    {{ category = "change", label = "change (%)", metrics = ["mean"], relative_to = "avg" }},
]
[[rows]]
model = "avg"
label = "Average, last turn"
deterministic = true
last = 1
[[rows]]
model = "cat"
label = "Concatenation, last turn"
deterministic = true
last = 1
[[rows]]
key = "lstm-3"
model = "lstm"
label = "LSTM of 3"
options = {{ hidden = 3 }}
paper = {{ overall = [10.0, 11.0], change = [5.0] }}
[[rows]]
key = "lstm-4"
model = "lstm"
label = "LSTM of 4"
"""
FIGURE = """
title = "A small figure"
run = "{spec}"
ablation = "{ablation}"
series = "hidden"
size = "hidden"
"""
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = caption_project(tmp_path_factory.mktemp("project"), "small", SPEC)
    names = {"spec": folder / "small.toml", "ablation": folder / "grid.toml"}
    for name, text in (("grid", ABLATION), ("table", TABLE), ("figure", FIGURE)):
        (folder / f"{name}.toml").write_text(text.format(**names), encoding="utf-8")
    return folder


@pytest.fixture
def cli(project: Path) -> Run:
    return partial(call, project)


@pytest.fixture(scope="module")
def done(project: Path) -> Path:
    """The output folder of the finished ablation."""
    place = open_ablation(str(project / "grid.toml"), "", (), project / "data", project / "out", "cpu")
    ablate(place)
    return project / "out"


def test_a_plan_writes_nothing_and_says_what_stage_1_would_do(cli: Run, project: Path) -> None:
    result = cli("ablate", str(project / "grid.toml"), "--dry-run", "--json", out="untouched")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["trainings"] == 6 and plan["evaluations"] == 16
    assert plan["extractions"]["images"] == 60 and plan["extractions"]["queries"] > 0
    assert plan["seconds"] is None and "extract" in plan["why"]
    assert not (project / "untouched").exists()


def test_everything_is_run_and_a_second_call_does_nothing(cli: Run, project: Path, done: Path) -> None:
    again = cli("ablate", str(project / "grid.toml"))
    assert again.exit_code == 0, again.output
    assert "0 extractions, 0 trainings, 0 evaluations" in again.stdout
    states = json.loads(cli("ablate", str(project / "grid.toml"), "--dry-run", "--json").stdout)["points"]
    assert [(p["number"], p["seed"], p["state"]) for p in states] == [
        (1, 0, "evaluated"),
        (2, 0, "evaluated"),
        *((n, seed, "evaluated") for n in (3, 4) for seed in (0, 1, 2)),
    ]
    timing = read_timing(timing_file(done, "grid"))
    assert len(timing["runs"]) == 4 and timing["turns"] == 2
    assert all(0 < run["low"] <= run["milliseconds"] <= run["high"] for run in timing["runs"].values())


def test_a_plan_measures_a_step_of_what_is_missing(cli: Run, project: Path, done: Path) -> None:
    result = cli("ablate", str(project / "grid.toml"), "--dry-run", "--json", "--only", "3", "--seeds", "0..4")
    plan = json.loads(result.stdout)
    assert plan["trainings"] == 2 and plan["seconds"] > 0
    assert [p["state"] for p in plan["points"]] == ["evaluated"] * 3 + ["to do"] * 2
    text = cli("ablate", str(project / "grid.toml"), "--dry-run", "--only", "3", "--seeds", "0..4").stdout
    assert "2 trainings" in text and "ms a step" in text


def test_a_run_that_was_trained_again_is_evaluated_again(cli: Run, project: Path, done: Path) -> None:
    from pipeline.evaluation.files import ResultFiles, load_results, load_summary

    file = next(done.glob("runs/*/lstm/*/views/turns2-last1/summary.json"))
    summary = load_summary(file)
    files = ResultFiles(file.parent.parent.parent, file.parent)
    files.save(load_results(files.results), {**summary, "weights": "0" * 64})  # as other weights left it
    plan = json.loads(cli("ablate", str(project / "grid.toml"), "--dry-run", "--json").stdout)
    assert plan["evaluations"] == 1
    cli("ablate", str(project / "grid.toml"))
    assert load_summary(file) == summary


def test_views_see_what_they_should(done: Path) -> None:
    """With one turn left, avg is the last turn alone, and cat the same query from the store."""
    from pipeline.evaluation.files import load_results

    found = {}
    for model in ("avg", "cat"):
        (file,) = done.glob(f"runs/*/{model}/*/views/turns2-last1/results.h5")
        found[model] = load_results(file)
    assert found["avg"].ranks.tolist() == found["cat"].ranks.tolist()
    (whole,) = done.glob("runs/*/avg/*/results.h5")
    assert load_results(whole).session_ids == found["avg"].session_ids
    assert load_results(whole).ranks.tolist() != found["avg"].ranks.tolist()


def test_the_table_carries_traces_intervals_and_statements(cli: Run, project: Path, done: Path) -> None:
    # rows 3 and 4 ask for the view turns2, which the ablation does not make: they name their command
    early = json.loads(cli("table", str(project / "table.toml"), "--json").stdout)
    rows = {row["label"]: row["cells"] for row in early["blocks"][0]["rows"]}
    assert rows["LSTM of 3"][0]["value"] is None
    assert "ablate" in rows["LSTM of 3"][0]["command"] and "--only 3" in rows["LSTM of 3"][0]["command"]
    assert rows["Average, last turn"][0]["value"] is not None

    text = (project / "grid.toml").read_text().replace("views = [", "views = [{ turns = 2 }, ")
    (project / "grid.toml").write_text(text)
    assert cli("ablate", str(project / "grid.toml")).exit_code == 0
    table = json.loads(cli("table", str(project / "table.toml"), "--json").stdout)
    rows = {row["label"]: row["cells"] for row in table["blocks"][0]["rows"]}
    cell = rows["LSTM of 3"][1]
    assert cell["low"] <= cell["value"] <= cell["high"] and cell["std"] is not None
    assert cell["seeds"] == [0, 1, 2] and len(cell["runs"]) == 3 and len(cell["store"]) == 64
    assert cell["difference"] == pytest.approx(cell["value"] - 11.0)
    base, change = rows["Average, last turn"][1]["value"], rows["LSTM of 3"][2]
    assert change["value"] == pytest.approx(100 * (cell["value"] / base - 1))
    assert change["difference"] == pytest.approx(change["value"] - 5.0)
    assert rows["Average, last turn"][2]["value"] is None
    statements = table["statements"]
    assert [s["b"] for s in statements] == ["Average, last turn", "Concatenation, last turn", "LSTM of 3"]
    for s in statements:
        assert s["a"] == "LSTM of 4" and s["sessions"] == 30 and s["p_holm"] >= s["p_sessions"]
        assert s["low"] <= s["difference"] <= s["high"] and s["least_p_seeds"] == 0.25 and not s["significant"]
    md = cli("table", str(project / "table.toml")).stdout
    assert "Significance:" in md and "exact paired sign-flip test" in md and "95% intervals over sessions" in md
    for form in ("latex", "csv"):
        assert cli("table", str(project / "table.toml"), "--format", form).exit_code == 0


@pytest.mark.slow
def test_a_figure_is_drawn_from_measured_points(cli: Run, project: Path, done: Path) -> None:
    pytest.importorskip("matplotlib")
    data = json.loads(cli("figure", str(project / "figure.toml"), "--json").stdout)
    points = [p for p in data["points"] if p["label"].startswith("lstm")]
    assert [p["series"] for p in points] == [3, 4]
    assert all(p["recall"] > 0 and p["milliseconds"] > 0 and len(p["runs"]) == 3 and not p["command"] for p in points)
    result = cli("figure", str(project / "figure.toml"), "--to", str(project / "drawn"))
    assert result.exit_code == 0, result.output
    drawn = {path.suffix: path.read_bytes()[:8] for path in (project / "drawn").iterdir()}
    assert drawn[".png"] == b"\x89PNG\r\n\x1a\n" and drawn[".pdf"].startswith(b"%PDF") and ".svg" in drawn
    assert "to fill" not in result.stdout  # every point has its runs and its time
    csv = cli("figure", str(project / "figure.toml"), "--format", "csv").stdout.splitlines()
    assert len(csv) == 1 + len(data["points"])


def test_another_run_spec_is_named_and_takes_no_value_of_the_paper(cli: Run, project: Path, done: Path) -> None:
    spec = str(project / "small.toml")
    table = json.loads(cli("table", "5", "--spec", spec, "--json").stdout)
    assert table["title"].endswith("(filled from run spec small)")
    assert all(cell["paper"] is None for row in table["blocks"][0]["rows"] for cell in row["cells"])
    assert any("another dataset than jsonl" in note for note in table["footnotes"])
    assert f"--spec {spec}" in table["blocks"][0]["rows"][0]["cells"][0]["command"]
    figure = json.loads(cli("figure", "8", "--spec", spec, "--json").stdout)
    assert figure["title"].endswith("(run spec small instead)")
    assert all(point["recall"] is None and point["command"] for point in figure["points"])
    empty = cli("figure", "8", "--spec", spec)
    assert empty.exit_code == 3 and f"run `fashion-ntm ablate figure8 --spec {spec}" in " ".join(empty.output.split())


def test_compare_lists_the_sessions_that_changed(cli: Run, project: Path, done: Path) -> None:
    (avg,) = (path.name for path in done.glob("runs/*/avg/*"))
    result = cli("compare", avg[:6], "cat", "--json", "--top", "4")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["a"]["runs"] == [avg] and found["sessions"] == 30
    nearer = [change["a"] / change["b"] for change in found["nearer"]]
    assert nearer == sorted(nearer, reverse=True) and all(gain > 1 for gain in nearer)
    assert found["nearer"][0]["turns"][0][1].startswith("more ")
    assert sum(found["sessions_nearer_same_further"]) == 30
    both = cli("compare", "lstm", "avg")
    assert both.exit_code == 4 and "2 configurations of this model" in both.output
    words = " ".join(both.output.split())
    assert "(hidden 3)" in words and "(hidden 4)" in words  # what tells them apart, and nothing else
    assert cli("compare", "lstn", "avg").exit_code == 4
    same = json.loads(cli("compare", "avg", "avg", "--json").stdout)
    assert same["nearer"] == [] and all(t["p_sessions"] == 1.0 and t["difference"] == 0 for t in same["tests"])
    text = cli("compare", "avg", "cat", "--top", "1").stdout
    assert "turn 1" in text and "p seeds" in text


def test_leaks_on_a_spec_with_a_store(cli: Run, project: Path, done: Path) -> None:
    result = cli("leaks", str(project / "small.toml"), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    every = found["counts"]["all"]
    assert every["n"] == 30 and every["any pair"] >= every["last pair"] > 0
    assert every["near last pair"] >= every["last pair"]
    assert found["curve"]["0.9"] >= found["curve"]["1.0"]
    text = cli("leaks", str(project / "small.toml")).stdout
    assert "near-duplicates" in text
    before = cli("leaks", str(project / "small.toml"), out="nowhere").stdout
    assert "near-duplicates are not searched: nothing is extracted" in before


def test_only_the_grid_or_the_search_asks_for_texts(project: Path, done: Path) -> None:
    """No model of the run spec reads the turns' texts; a point of an ablation does, and so does a trial."""
    spec = load_spec(str(project / "small.toml"))
    width = Workspace(done).backbone(spec, load_dataset(spec, project / "data")).tables["text"].dim
    grid = f"""
name = "told"
run = "{project / "small.toml"}"
seeds = [0]
timing = true
[[grid]]
models = ["lstm"]
options = {{ hidden = 5, texts = [0, {width}] }}
"""
    (project / "told.toml").write_text(grid, encoding="utf-8")
    place = open_ablation(str(project / "told.toml"), "", (), project / "data", done, "cpu")
    planned = plan_ablation(place)
    assert set(planned.step_ms) == {1, 2}
    after = ablate(place)
    assert not after.groups and len({task.run.options["texts"] for task in after.tasks}) == 2
    assert len(read_timing(timing_file(done, "told"))["runs"]) == 2
    found = tune(spec, place.dataset, Workspace(done), "lstm", [f"texts=0,{width}"], folds=2, trials=4, device="cpu")
    assert {t.params["texts"] for t in found.trials} == {0, width} and not any(t.failed for t in found.trials)


@pytest.mark.slow
def test_a_local_cluster_gives_the_same_weights(project: Path, done: Path) -> None:
    pytest.importorskip("distributed")
    out = project / "clustered"
    words = [
        sys.executable,
        "-m",
        "cli",
        "ablate",
        str(project / "grid.toml"),
        "--data",
        str(project / "data"),
        "--out",
        str(out),
        "--local-cluster",
        "2",
        "--device",
        "cpu",
    ]
    finished = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment(), timeout=280)
    assert finished.returncode == 0, finished.stderr
    assert weights(out) == weights(done, only=weights(out).keys())


@pytest.mark.slow
def test_a_killed_ablation_goes_on(project: Path, done: Path) -> None:
    """SIGKILL in the middle of the grid: finished runs stay, and the end is that of an undisturbed ablation."""
    out, words = project / "killed", ["ablate", str(project / "grid.toml"), "--data", str(project / "data")]
    words += ["--out", str(out), "--device", "cpu"]
    with forked(main, words) as program:
        deadline = time.monotonic() + 200
        while len(weights(out)) < 3 and program.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(program.pid, signal.SIGKILL)
    before = weights(out)
    assert len(before) >= 3 and program.process.exitcode == -signal.SIGKILL
    with forked(main, words) as program:
        code, _, errors = program.finish(280)
        assert code == 0, errors
    after = weights(out)
    assert before.items() <= after.items()
    assert after == weights(done, only=after.keys())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def weights(out: Path, only: object = None) -> dict[str, bytes]:
    """Run id -> its weights, of finished runs."""
    found = {}
    for file in out.glob("runs/*/*/*/run.json"):
        if json.loads(file.read_text()).get("finished"):
            found[file.parent.name] = (file.parent / "model.safetensors").read_bytes()
    return found if only is None else {k: v for k, v in found.items() if k in only}  # type: ignore[operator]
