"""The report as a file, and as a reader sees it in a browser without a network."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from cli import main
from manifests.errors import ManifestError
from pipeline.evaluation.files import load_results, load_summary
from pipeline.jobs.identities import make_run
from pipeline.jobs.stage2 import evaluate_run, train
from pipeline.views.report.build import Options, gather
from pipeline.views.report.charts import heat, lines, scatter
from pipeline.views.report.curves import diagnostics, memory_figure
from pipeline.views.report.page import ReportError, write_report
from pipeline.views.report.strips import choose, memory_weights
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import trained_runs
from tests.pipeline.small_demo import EVIL, Project, accessible, no_sideways_scroll, page_of


def made(project: Project, path: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    asked = Options(**options)
    values = gather(project.experiment(), project.folder, asked)
    done = write_report(path, values)
    return path.read_text(encoding="utf-8"), done


@pytest.fixture(scope="module")
def report(demo: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    made(demo, path, k=4)
    return path


class Links(HTMLParser):
    """Everything that a page would load or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data", "poster")
        ]


def test_the_file_loads_nothing(report: Path) -> None:
    links = Links()
    links.feed(report.read_text(encoding="utf-8"))
    assert links.found and all(link.startswith("#") for link in links.found)
    assert not re.search(r"@import|url\(|<link|<iframe", report.read_text(encoding="utf-8"))


def test_the_tables_hold_the_runs_numbers(demo: Project, report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    for trained in trained_runs(demo.experiment())[0]:
        summary = load_summary(trained.folder.path / "summary.json")
        overall = summary["metrics"]["all"]["overall"]
        row = re.search(rf'<th scope="row">{re.escape(trained.title)}</th>(.*?)</tr>', text, re.S)
        assert row and f"<td>{overall['mean']:.1f}</td>" in row.group(1)
        assert trained.run in text


def test_the_strips_hold_the_ranks_of_the_evaluation(demo: Project, report: Path) -> None:
    wanted = load_results(trained_runs(demo.experiment())[0][-1].folder.path / "results.h5")
    ranks = dict(zip(wanted.session_ids, wanted.ranks.tolist(), strict=True))
    found = re.findall(
        r'<summary><span class="name">(.*?)</span>.*?target at <b>(\d+)</b>', report.read_text(encoding="utf-8")
    )
    assert {name: int(rank) for name, rank in found} == ranks


def test_markup_in_a_dataset_stays_text(words: Project, tmp_path: Path) -> None:
    text, done = made(words, tmp_path / "r.html")
    assert done["pictures"] == 0 and EVIL not in text and "&lt;/script&gt;" in text
    assert text.count("<script") == 2
    assert 'class="card' in text  # captions stand in for the images


@pytest.mark.slow  # four reports
def test_pictures_give_way_before_sessions_and_sessions_before_the_limit(demo: Project, tmp_path: Path) -> None:
    text, whole = made(demo, tmp_path / "a.html")
    _, small = made(demo, tmp_path / "b.html", megabytes=whole["bytes"] / 1e6 - 0.03)
    assert small["bytes"] <= whole["bytes"] - 30_000
    assert 0 < small["pictures"] < whole["pictures"] and small["sessions"] == whole["sessions"]
    assert "pictures are left out" not in text and "pictures are left out" in (tmp_path / "b.html").read_text()
    _, tiny = made(demo, tmp_path / "c.html", megabytes=0.16)
    assert tiny["bytes"] <= 160_000 and tiny["sessions"] < whole["sessions"]
    with pytest.raises(ReportError, match="--max-mb"):
        made(demo, tmp_path / "d.html", megabytes=0.02)


def test_sections_without_data_say_what_makes_them(demo: Project, report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert "train" in text and "--diagnostics" in text and "ablate" in text


def test_logged_diagnostics_and_timed_ablations_become_figures(demo: Project) -> None:
    experiment = demo.experiment()
    trained = trained_runs(experiment, ["cm_ntm"])[0]
    log, timing = trained[0].folder.path / "diagnostics.jsonl", demo.folder / "ablations" / "figure8" / "timing.json"
    entry = {"row_spread": [[0.0, 0.25, 0.9], [0.0, 0.5, 0.9]], "read_entropy": [[1.0, 1.2], [0.4, 0.4]]}
    entry |= {"gradient": {"addressing": [1e-3, 2e-3], "key": [0.0, 0.0]}, "slots": 4}
    other = experiment.folder(make_run(experiment.spec, "cm_ntm", 1)).path
    try:
        log.write_text("".join(json.dumps({"epoch": n, **entry}) + "\n" for n in (1, 2)) + '{"epo', encoding="utf-8")
        found = {figure.title: figure for figure in diagnostics(trained, "mini")}
        assert "cm_ntm, stage 1 0.25, cm_ntm, stage 2 0.5" in found["row spread of the memories"].note
        assert "stage 1 1.1" in found["entropy of the read weights, nats"].note
        assert len(found) == 3 and all("<svg" in figure.svg for figure in found.values())
        timing.parent.mkdir(parents=True)
        timing.write_text(json.dumps({"runs": {trained[0].run: {"milliseconds": 0.25}}}), encoding="utf-8")
        assert "fewer than two" in memory_figure(experiment).why_not
        run = make_run(experiment.spec, "cm_ntm", 1)
        list(train(experiment, [run]))
        evaluate_run(experiment, run)
        runs = {run: {"milliseconds": 0.25} for run in (trained[0].run, other.name)}
        timing.write_text(json.dumps({"runs": runs}), encoding="utf-8")
        assert memory_figure(experiment).svg.count("C = 2: 4 slots of D, seed") == 2
        timing.write_text("{", encoding="utf-8")
        assert "fewer than two" in memory_figure(experiment).why_not
    finally:
        log.unlink()
        shutil.rmtree(other, ignore_errors=True)
        shutil.rmtree(timing.parent.parent)


def test_an_unknown_model_is_named_with_the_nearest(demo: Project) -> None:
    with pytest.raises(ManifestError, match="cm_ntm"):
        gather(demo.experiment(), demo.folder, Options(model="cmntm"))


def test_memory_weights_are_weights_and_only_memories_have_them(demo: Project) -> None:
    bed = TestBed(demo.experiment())
    models, _ = trained_runs(bed.experiment)
    found = memory_weights(bed, models[-1], [0, 5])
    assert found is not None and found.shape == (2, bed.features.turns, 2, 2, 4)
    assert np.allclose(found.sum(-1), 1, atol=1e-5) and memory_weights(bed, models[0], [0, 5]) is None


def test_a_sample_keeps_the_first_and_repeats(demo: Project) -> None:
    bed = TestBed(demo.experiment())
    assert choose(bed, [7, 3], 6) == choose(bed, [7, 3], 6) and choose(bed, [7, 3], 6)[:2] == [7, 3]
    assert len(set(choose(bed, [7, 3], 27))) == 27


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 3.0), (2, 3.0)], [(0, -1e-9), (5, 1e6)], []])
def test_charts_are_whole_pictures_for_any_numbers(points: list[tuple[float, float]]) -> None:
    parts = [lines({"<a&b>": points}, "x", "y", 'about "it"'), heat(np.full((3, 2, 4), 0.25), "turn <1>")]
    parts += [scatter({"C = 1": [(*p, "run") for p in points]}, "x", "y", "about")]
    for part in parts:
        tree = ElementTree.fromstring(f"<div>{part}</div>")
        for circle in tree.iter("circle"):
            assert 0 <= float(circle.attrib["cx"]) <= 520 and 0 <= float(circle.attrib["cy"]) <= 260


def test_the_command_writes_the_file(demo: Project, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    words = ["report", str(demo.file), "--data", str(demo.folder), "--out", str(demo.folder), "--file", str(out)]
    done = CliRunner().invoke(
        main, [*words, "--sessions", "3", "--model", "ewma", "--against", "last", "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out) and out.read_text(encoding="utf-8").count('class="session"') == 3


@pytest.mark.slow
def test_a_reader_without_a_network(browser: Any, report: Path) -> None:
    """On a small dark screen, and at its end on a large light one."""
    look: dict[str, Any] = {"color_scheme": "dark", "viewport": {"width": 390, "height": 800}}
    with page_of(browser, offline=True, **look) as page:
        page.goto(report.as_uri())
        assert page.locator(".session[open]").count() == 3
        assert page.evaluate("[...document.querySelectorAll('.pair img')].every(i => i.complete && i.naturalWidth > 0)")
        closed = page.locator(".session:not([open])").first
        assert closed.locator("img[src]").count() == 0
        name = closed.locator(".name").text_content()  # off screen: no layout, no inner text
        closed.locator("summary").click()
        opened = page.locator(".session", has_text=name)
        opened.locator("img[src]").first.wait_for(state="attached")  # the browser tells of the opening after the click
        opened.locator("img[src]").first.wait_for(state="attached")  # the page fills them in after the click
        assert opened.locator("img[src]").count() == opened.locator("img").count() > 0
        page.fill("#filter", name)
        assert page.locator(".session:visible").count() == 1 and "1 of 27" in page.inner_text("#shown")
        page.fill("#filter", "")
        assert no_sideways_scroll(page)
        assert accessible(page) == []
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1200, "height": 900})
        assert no_sideways_scroll(page)
        assert accessible(page) == []
        assert len(page.pdf(format="A4")) > 20_000
