"""A study: what is asked, that nothing gives a model away, that no answer is lost, and what the answers say."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from scipy.stats import binomtest

pytest.importorskip("starlette", reason="no web packages: pip install 'fashion-ntm[serve]'")
pytest.importorskip("httpx", reason="no httpx: pip install 'fashion-ntm[test]'")

import httpx

from cli import main
from manifests.errors import IncompleteError, ManifestError
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment
from pipeline.training.checkpoint import load_model, save_model
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import trained_runs
from pipeline.views.study.app import make_study_app
from pipeline.views.study.results import study_results
from pipeline.views.study.run import open_study
from pipeline.views.study.store import Question, StudyError, StudyFile, draw_questions
from tests.pipeline.small_demo import Project, accessible, no_sideways_scroll, page_of, served
from tests.processes import forked

MODELS = ("cm_ntm", "ewma", "last")


def opened(demo: Project, path: Path, **options: Any) -> StudyFile:
    asked: dict[str, Any] = {"models": MODELS, "sessions": 5, **options}
    return open_study(path, demo.experiment(), **asked)


@pytest.fixture
def study(demo: Project, tmp_path: Path) -> StudyFile:
    return opened(demo, tmp_path / "study.sqlite")


def hand_made(path: Path, questions: int = 12) -> StudyFile:
    """A study with known options: "a" alone, "b" and "c" alike, so that the results can be counted by hand."""
    options = ((("a",), ("i1",)), (("b", "c"), ("i2",)))
    models = [{"label": x, "title": x.upper(), "run": x * 12} for x in "abc"]
    about = {"spec": "hand", "models": models, "k": 1, "seed": 3}
    return StudyFile.create(path, about, [Question(n, f"s{n}", options) for n in range(questions)])


def choose(study: StudyFile, name: str, number: int, option: int | None) -> None:
    """Choose an option by its true place."""
    order = study.questions[number].shuffled(study.about["seed"], name)
    study.answer(name, number, None if option is None else order.index(option), 1.0)


# ---- what is asked


def test_the_options_are_what_the_models_retrieve_and_they_differ(demo: Project, study: StudyFile) -> None:
    bed = TestBed(demo.experiment())
    models = {m.label: m for m in trained_runs(bed.experiment)[0]}
    places = {s.id: n for n, s in enumerate(bed.sessions)}
    assert len(study.questions) == 5 and [m["label"] for m in study.about["models"]] == list(MODELS)
    for question in study.questions:
        shown = {label: images for labels, images in question.options for label in labels}
        assert set(shown) == set(MODELS) and len(question.options) > 1
        for label, images in shown.items():
            row = bed.top(bed.finals(models[label]), 1)[places[question.session]][0]
            assert images == (bed.image(places[question.session], row),)


def test_a_draw_repeats_and_another_seed_draws_others(demo: Project) -> None:
    bed = TestBed(demo.experiment())
    models = trained_runs(bed.experiment, MODELS)[0]
    first, differ = draw_questions(bed, models, 4, 2, 0)
    assert draw_questions(bed, models, 4, 2, 0) == (first, differ) and differ <= len(bed.sessions)
    assert [q.session for q in first] != [q.session for q in draw_questions(bed, models, 4, 2, 1)[0]]
    assert all(len(images) == 2 for q in first for _, images in q.options)
    with pytest.raises(StudyError, match="2 to 4 models"):
        draw_questions(bed, models[:1], 4, 1, 0)
    with pytest.raises(StudyError, match="nothing to choose"):
        draw_questions(bed, [models[0], models[0]], 4, 1, 0)


def test_orders_are_each_participants_own_and_balanced(tmp_path: Path) -> None:
    study = hand_made(tmp_path / "s.sqlite", 40)
    firsts = [q.shuffled(3, name)[0] for q in study.questions for name in ("ann", "ben", "cyd", "dan", "eve")]
    assert 0.35 < sum(firsts) / len(firsts) < 0.65
    assert study.order("ann") != study.order("ben") and sorted(study.order("ann")) == list(range(40))
    assert study.order("ann") == StudyFile(study.path).order("ann")


def test_nothing_sent_to_the_page_names_a_model_or_an_image(demo: Project, study: StudyFile) -> None:
    with served(make_study_app(study, demo.dataset, "Small")) as address, httpx.Client(base_url=address) as client:
        sent = client.get("/").text + client.get("/static/study/study.js").text
        answer = client.post("/api/join", json={"name": "ann"})
        for place in range(len(study.questions)):
            sent += client.post("/api/question", json={"name": "ann", "place": place}).text
        image = answer.json()["question"]["options"][0][0]["src"]
        assert client.get(f"/{image}").headers["content-type"] == "image/jpeg"
    names = [
        *(f'"{name}"' for name in MODELS),
        "cm_ntm",
        "CM-NTM",
        "EWMA",
        *(m["run"] for m in study.about["models"]),
        *(q.session for q in study.questions),
    ]
    for secret in [*names, *(i for q in study.questions for _, images in q.options for i in images)]:
        assert secret not in sent.replace("fashion-ntm", ""), secret


# ---- what is kept


def test_an_answer_is_kept_under_the_true_option_and_may_be_changed(tmp_path: Path) -> None:
    study = hand_made(tmp_path / "s.sqlite")
    study.join("ann")
    for number in range(12):
        choose(study, "ann", number, number % 2)
    assert [option for _, _, option in study.answers()] == [n % 2 for n in range(12)]
    choose(study, "ann", 0, None)
    assert study.answered("ann")[0] is None and len(study.answers()) == 12


@pytest.mark.parametrize(
    ("question", "shown"), [(99, 0), (-1, 0), (True, 0), ("0", 0), (None, 0), (0, 2), (0, -1), (0, True), (0, "0")]
)
def test_an_answer_that_fits_no_question_is_refused(tmp_path: Path, question: Any, shown: Any) -> None:
    study = hand_made(tmp_path / "s.sqlite")
    study.join("ann")
    with pytest.raises(
        StudyError, match="there is no question" if question != 0 or isinstance(question, bool) else "no option"
    ):
        study.answer("ann", question, shown, None)
    assert study.answers() == []


def test_names_are_checked(demo: Project, tmp_path: Path) -> None:
    study = hand_made(tmp_path / "s.sqlite")
    assert study.join("  Ann \n Lee ") == "Ann Lee"
    for wrong in ("", "   ", None, 5, "x" * 61):
        with pytest.raises(StudyError, match="a name"):
            study.join(wrong)
    with pytest.raises(StudyError, match="join first"):
        study.answer("nobody", 0, 0, None)
    listed = opened(demo, tmp_path / "listed.sqlite", codes=("k1", "k2"))
    assert listed.join("k1") == "k1"
    with pytest.raises(StudyError, match="not on it"):
        listed.join("k3")


def test_a_study_is_gone_on_with_and_never_mixed_with_another(demo: Project, study: StudyFile) -> None:
    study.join("ann")
    study.answer("ann", 0, 1, 2.5)
    again = opened(demo, study.path)
    assert again.questions == study.questions and len(again.answers()) == 1
    with pytest.raises(StudyError, match=r"sessions 5 -> 6.*--file"):
        opened(demo, study.path, sessions=6)
    with pytest.raises(ManifestError, match="no model 'lstm'"):
        opened(demo, study.path.with_name("b.sqlite"), models=("cm_ntm", "lstm"))


def test_a_study_of_other_weights_or_data_is_not_gone_on_with(demo: Project, tmp_path: Path) -> None:
    """Of its own copy of the runs: a model trained again, then a gallery with one image less."""
    shutil.copytree(demo.folder / "runs", tmp_path / "runs")
    for name in ("stores", "extracted"):
        (tmp_path / name).symlink_to(demo.folder / name)
    workspace, path = Workspace(tmp_path), tmp_path / "study.sqlite"
    asked: dict[str, Any] = {"models": MODELS, "sessions": 5}
    study = open_study(path, Experiment(demo.spec, demo.dataset, workspace, "cpu"), **asked)
    study.join("ann")
    study.answer("ann", 0, 1, 2.5)
    (cm_ntm, *_) = trained_runs(demo.experiment(), ["cm_ntm"])[0]
    folder = tmp_path / cm_ntm.folder.path.relative_to(demo.folder)
    weights = json.loads((folder / "model.json").read_text())["sha256"]
    assert study.about["models"][0] == {"label": "cm_ntm", "title": cm_ntm.title, "run": cm_ntm.run, "weights": weights}
    found = study_results(study)
    assert found.models[0]["weights"] == weights and f"run {cm_ntm.run}, weights {weights[:12]}" in found.text()

    test, *others = sorted(demo.dataset.galleries, key=lambda g: g.split)
    fewer = test.model_copy(update={"images": test.images[1:]})
    dataset = demo.dataset.model_copy(update={"galleries": (fewer, *others)})
    with pytest.raises(StudyError, match=rf"\(galleries\.{test.category}: .* -> .*name a new file with --file"):
        open_study(path, Experiment(demo.spec, dataset, workspace, "cpu"), **asked)

    model = load_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    save_model(folder, model)
    with pytest.raises(StudyError, match=rf"\(models\.cm_ntm: .*{weights[:12]}.* -> null"):
        open_study(path, Experiment(demo.spec, demo.dataset, workspace, "cpu"), **asked)
    shutil.rmtree(folder)
    with pytest.raises(StudyError, match=rf"\(models\.cm_ntm: .*{cm_ntm.run}.* -> null\)"):
        open_study(path, Experiment(demo.spec, demo.dataset, workspace, "cpu"), **asked)
    assert len(StudyFile(path).answers()) == 1


def test_answers_of_many_at_once_are_all_kept(tmp_path: Path) -> None:
    study = hand_made(tmp_path / "s.sqlite")

    def work(name: str) -> None:
        study.join(name)
        for number in range(12):
            choose(study, name, number, number % 2)

    threads = [threading.Thread(target=work, args=(f"p{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(study.answers()) == 72
    with sqlite3.connect(study.path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_killed_server_loses_no_acknowledged_answer(demo: Project, tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite"
    words = [
        "study",
        str(demo.file),
        *demo.options,
        "--file",
        str(path),
        "--sessions",
        "6",
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    words += [w for name in MODELS for w in ("--model", name)]
    given = 0
    for _ in range(2):
        with forked(main, words) as server:
            address = server.stdout.readline().strip()
            view = httpx.post(address + "api/join", json={"name": "ann"}, timeout=60).json()
            assert view["answered"] == given
            for _ in range(2):
                values = {"name": "ann", "question": view["question"]["number"], "option": 0}
                view = httpx.post(address + "api/answer", json=values, timeout=60).json()
                given += 1
            os.killpg(server.pid, signal.SIGKILL)
        assert len(StudyFile(path).answers()) == given


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_study_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(content)
    with pytest.raises(StudyError, match="not a study"):
        StudyFile(path)
    with pytest.raises(IncompleteError, match="no such study"):
        StudyFile(tmp_path / "absent.sqlite")


# ---- what the answers say


def test_results_counted_by_hand(tmp_path: Path) -> None:
    study = hand_made(tmp_path / "s.sqlite")
    with pytest.raises(IncompleteError, match="no question is answered"):
        study_results(study)
    for name, wins in (("ann", 9), ("ben", 7)):
        study.join(name)
        for number in range(12):
            choose(study, name, number, None if number == 11 else int(number >= wins))
    found = study_results(study)
    # a alone was chosen 9 + 7 times, b and c alike 2 + 4 times, and 2 answers had no preference
    assert {r.model: (r.chosen, r.of) for r in found.rates} == {"a": (16, 22), "b": (6, 22), "c": (6, 22)}
    assert (found.answers, found.no_preference, found.shared) == (24, 2, 6)
    assert found.participants == {"ann": {"a": 9, "b": 2, "c": 2}, "ben": {"a": 7, "b": 4, "c": 4}}
    interval = binomtest(16, 22).proportion_ci(method="wilson")
    assert (found.rates[0].low, found.rates[0].high) == pytest.approx((interval.low, interval.high))
    tests = {(t.one, t.other, t.unit): t for t in found.tests}
    # by session: 0-6 both for a, 7-8 one each (a tie), 9-10 both for b and c
    assert (tests["a", "b", "session"].for_one, tests["a", "b", "session"].for_other) == (7, 2)
    assert tests["a", "b", "answer"].p == pytest.approx(binomtest(16, 22).pvalue)
    assert (tests["b", "c", "answer"].for_one, tests["b", "c", "answer"].p) == (0, 1.0)
    p = binomtest(7, 9).pvalue
    assert tests["a", "b", "session"].holm == pytest.approx(min(1, 3 * p)) and tests["b", "c", "session"].holm == 1
    assert "72.7%" in found.text() and "by session: 7 to 2" in found.text()


@pytest.mark.slow
def test_the_command_prints_results_and_draws_the_chart(tmp_path: Path) -> None:
    study = hand_made(tmp_path / "s.sqlite")
    study.join("ann")
    choose(study, "ann", 0, 0)
    words = ["study", "results", str(study.path)]
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["rates"][0]["rate"] == 1.0
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install 'fashion-ntm[plots]'")
    chart = tmp_path / "figure7.svg"
    assert CliRunner().invoke(main, [*words, "--chart", str(chart)]).exit_code == 0
    assert chart.read_bytes().startswith(b"<?xml")
    bad = CliRunner().invoke(main, [*words, "--chart", str(tmp_path / "figure7.xyz")])
    assert bad.exit_code == 3 and ".png, .pdf or .svg" in bad.output


# ---- in the browser


@pytest.fixture
def address(demo: Project, study: StudyFile) -> Iterator[str]:
    with served(make_study_app(study, demo.dataset, "Small", hosts=("localhost",))) as found:
        yield found


@pytest.mark.slow
def test_five_questions_and_a_pause(browser: Any, study: StudyFile, address: str) -> None:
    """One day on a large light screen, another on a small dark one."""
    with page_of(browser, color_scheme="light") as page:
        page.goto(address)
        assert accessible(page) == [] and no_sideways_scroll(page)
        page.fill("#name", "ann")
        page.press("#name", "Enter")
        page.locator("#options .tile").first.wait_for()
        assert accessible(page) == [] and no_sideways_scroll(page)
        page.keyboard.press("1")
        page.get_by_text("1 of 5 answered").wait_for()
        page.locator("#options .tile").nth(1).click()
        page.get_by_text("2 of 5 answered").wait_for()
        page.click("#back")
        page.locator("#options .tile[aria-pressed=true]").wait_for()
        page.keyboard.press("1")  # another mind
        page.get_by_text("2 of 5 answered").wait_for()
    look: dict[str, Any] = {"color_scheme": "dark", "viewport": {"width": 360, "height": 740}}
    with page_of(browser, **look) as page:  # another day
        page.goto(address)
        assert accessible(page) == [] and no_sideways_scroll(page)
        page.fill("#name", "ann")
        page.get_by_role("button", name="Begin").click()
        page.get_by_text("2 of 5 answered").wait_for()
        assert accessible(page) == [] and no_sideways_scroll(page)
        page.keyboard.press("0")
        page.get_by_text("3 of 5 answered").wait_for()
        for number in (4, 5):
            page.keyboard.press("2")
            page.get_by_text(f"{number} of 5 answered").wait_for()
        assert page.get_by_text("All questions are answered").is_visible()
        assert accessible(page) == []
    done, order = study.answered("ann"), study.order("ann")
    shown = [study.questions[n].shuffled(0, "ann") for n in order]
    assert [done[n] for n in order] == [shown[0][0], shown[1][0], None, shown[3][1], shown[4][1]]
