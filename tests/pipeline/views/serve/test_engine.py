"""Dialogues: the same answers as the evaluation's, back and forth, many at once."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.errors import IncompleteError
from manifests.load import load_dataset, load_spec
from manifests.schema import Component, Session
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.stage1 import extract_spec
from pipeline.jobs.stage2 import evaluate, train
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import trained_runs
from pipeline.views.serve.engine import Engine
from pipeline.views.serve.limits import Limits, RequestError, clean_text
from pipeline.views.serve.run import open_engine, saved_folder
from pipeline.views.serve.saved import SavedDialogues
from tests.pipeline.small_demo import Project


@pytest.fixture(scope="module")
def engine(demo: Project) -> Engine:
    return open_engine(demo.experiment())


def play(engine: Engine, session: Any, models: list[str]) -> Any:
    """A logged session as a dialogue."""
    talk = engine.start(session.category, engine.numbers[session.turns[0].reference], models)
    for turn in session.turns:
        engine.choose(talk, engine.numbers[turn.reference])
        engine.say(talk, turn.text)
    return talk


def test_a_logged_session_gets_the_results_of_the_evaluation(demo: Project, engine: Engine) -> None:
    """Turn by turn with carried state, live queries and its own index: the same top 10 as the whole session at once."""
    bed = TestBed(demo.experiment())
    for trained in trained_runs(bed.experiment)[0]:
        top = bed.top(bed.finals(trained), 10)
        for number, session in list(enumerate(bed.sessions))[::5]:
            talk = play(engine, session, [trained.label])
            found = [image for image, _ in engine.results(talk, 10)[trained.label]]
            assert found == [bed.image(number, row) for row in top[number]], (trained.label, session.id)


def test_back_is_as_if_it_was_never_said(demo: Project, engine: Engine) -> None:
    session = next(s for s in demo.dataset.split("test") if len(s.turns) > 2)
    talk = play(engine, session, ["cm_ntm", "cat"])
    engine.say(talk, "with polka dots")
    engine.back(talk)
    engine.back(talk)
    shorter = session.model_copy(update={"turns": session.turns[:-1]})
    assert engine.results(talk, 8) == engine.results(play(engine, shorter, ["cm_ntm", "cat"]), 8)
    assert talk.chosen == session.turns[-1].reference and len(talk.steps) == len(session.turns) - 1
    for _ in range(len(talk.steps)):
        engine.back(talk)
    assert engine.results(talk, 8) == {"cm_ntm": [], "cat": []}
    with pytest.raises(RequestError, match="no turn to take back"):
        engine.back(talk)


def test_permuted_turns_are_heard_anew(demo: Project, engine: Engine) -> None:
    session = next(s for s in demo.dataset.split("test") if len(s.turns) == 3)
    talk = play(engine, session, ["cm_ntm"])
    engine.permute(talk, [2, 0, 1])
    turned = session.model_copy(update={"turns": tuple(session.turns[n] for n in (2, 0, 1))})
    assert engine.results(talk, 8) == engine.results(play(engine, turned, ["cm_ntm"]), 8)
    for wrong in ([0, 1], [0, 1, 1], [0, 1, 3], "012", None, [[], 1, 2]):
        with pytest.raises(RequestError, match="each of the 3 turns once"):
            engine.permute(talk, wrong)


def test_a_model_that_joins_late_has_heard_everything(demo: Project, engine: Engine) -> None:
    session = demo.dataset.split("test")[0]
    talk = play(engine, session, ["ewma"])
    chosen = talk.chosen
    engine.compare(talk, ["cm_ntm", "ewma"])
    assert engine.results(talk, 8) == engine.results(play(engine, session, ["cm_ntm", "ewma"]), 8)
    assert talk.chosen == chosen
    for wrong in ([], ["last", "avg", "cat"], "ewma"):
        with pytest.raises(RequestError, match="name one model, or 2 to compare"):
            engine.compare(talk, wrong)
    for wrong in (["cm_ntm", "cm_ntm"], ["nobody"]):
        with pytest.raises(RequestError, match="name different ones of"):
            engine.compare(talk, wrong)
    assert list(talk.models) == ["cm_ntm", "ewma"]


def test_many_dialogues_at_once_do_not_disturb_each_other(demo: Project, engine: Engine) -> None:
    sessions = demo.dataset.split("test")[:12]
    alone = {s.id: engine.results(play(engine, s, ["cm_ntm"]), 8) for s in sessions}
    found, errors = {}, []

    def work(session: Any) -> None:
        try:
            found[session.id] = engine.results(play(engine, session, ["cm_ntm"]), 8)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(s,)) for s in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and found == alone


def test_a_refused_turn_changes_nothing(demo: Project, engine: Engine) -> None:
    talk = play(engine, demo.dataset.split("test")[0], ["cm_ntm"])
    before, turns = engine.results(talk, 5), list(talk.steps)
    for wrong, why in (
        ("", "type what"),
        ("   \n", "type what"),
        (None, "must be text"),
        (3, "must be text"),
        ("x" * 501, "501 characters"),
    ):
        with pytest.raises(RequestError, match=why):
            engine.say(talk, wrong)
    for wrong in (-1, len(engine.ids), 10**30, "0", True, None, "../../etc/passwd"):
        with pytest.raises(RequestError, match="no catalog image has number"):
            engine.choose(talk, wrong)
    assert engine.results(talk, 5) == before and talk.steps == turns


def test_the_oldest_dialogue_is_forgotten_and_a_long_one_ends(demo: Project) -> None:
    engine = open_engine(
        demo.experiment(),
        cached_only=True,
        limits=Limits(dialogues=2, turns=2),
    )
    session = demo.dataset.split("test")[0]
    start = (session.category, engine.numbers[session.turns[0].reference])
    first, second = engine.start(*start), engine.start(*start)
    assert engine.talk(first.id) is first  # used last, so the second one goes
    third = engine.start(*start)
    assert engine.talk(first.id) is first and engine.talk(third.id) is third
    with pytest.raises(RequestError, match="start a new one"):
        engine.talk(second.id)
    engine.say(first, session.turns[0].text)
    first.chosen = session.turns[1].reference
    engine.say(first, session.turns[1].text)
    with pytest.raises(RequestError, match="at most 2 turns"):
        engine.say(first, session.turns[0].text)


def test_without_an_extractor_cached_texts_work_and_others_say_why(demo: Project) -> None:
    engine = open_engine(demo.experiment(), cached_only=True)
    session = demo.dataset.split("test")[0]
    talk = engine.start(session.category, engine.numbers[session.turns[0].reference])
    engine.say(talk, session.turns[0].text)
    with pytest.raises(Exception, match="not cached and no extractor is loaded"):
        engine.say(talk, "a shirt for a penguin")
    assert len(talk.steps) == 1 and len(next(iter(talk.models.values())).notes) == 1


def test_an_extractor_that_cannot_be_loaded_leaves_a_page_that_says_why(demo: Project, tmp_path: Path) -> None:
    broken = demo.spec.model_copy(update={"extractor": Component(name="clip", model=str(tmp_path / "gone"))})
    workspace = Workspace(tmp_path / "out")
    (tmp_path / "out").mkdir()
    for name in ("stores", "runs"):
        (tmp_path / "out" / name).symlink_to(demo.folder / name)
    from dataclasses import replace

    from pipeline.core.workspace import extraction_request

    (tmp_path / "out" / "extracted").mkdir()
    workspace.bindings.symlink_to(demo.workspace.bindings)
    note = demo.workspace.extracted(demo.spec)
    workspace.write_note(broken, replace(note, request=extraction_request(broken)))
    engine = open_engine(Experiment(broken, demo.dataset, workspace, "cpu"))
    assert not engine.queries.live and "gone" in engine.why_not_live


@pytest.mark.parametrize("text", ["more red", " more\tred\n", "more\u0000red", "more\u2028red"])
def test_feedback_becomes_one_line(text: str) -> None:
    assert clean_text(text, 20) == "more red"


def test_saved_dialogues_are_a_dataset_that_evaluate_reads(demo: Project, engine: Engine, tmp_path: Path) -> None:
    """The whole way: dialogues, saved, extracted (new texts alone are new), trained on the same sessions, evaluated."""
    session = demo.dataset.split("test")[0]
    talk = play(engine, session, ["cm_ntm"])
    engine.choose(talk, engine.numbers[session.target])
    line = json.dumps(engine.session(talk).model_dump(), ensure_ascii=False) + "\n"
    assert json.loads(line)["target"] == session.target and line.endswith("\n")
    saved, models = SavedDialogues(tmp_path / "saved", demo.dataset, engine.made_with), [engine.trained["cm_ntm"]]
    saved.add(engine.session(talk), models)
    engine.say(talk, "with a belt for a penguin")
    engine.choose(talk, engine.numbers[session.target])
    saved.add(engine.session(talk), models)  # again: replaces itself
    other = play(engine, demo.dataset.split("test")[1], ["cm_ntm"])
    SavedDialogues(tmp_path / "saved", demo.dataset, engine.made_with).add(engine.session(other), models)

    models = {name: demo.spec.models[name] for name in ("last", "ewma")}
    spec = demo.spec.model_copy(update={"dataset": Component(name="jsonl", **saved.about["options"]), "models": models})
    found = load_dataset(spec, tmp_path)
    assert found.name == "demo-dialogues" and len(found.split("test")) == 2
    assert found.split("train") == demo.dataset.split("train")
    assert len(found.split("test")[0].turns) == len(session.turns) + 1
    workspace = Workspace(tmp_path / "out")
    extract_spec(spec, found, workspace, "cpu")
    list(train(Experiment(spec, found, workspace, "cpu")))
    for summary in evaluate(Experiment(spec, found, workspace, "cpu")):
        assert summary["sessions"] == 2 and summary["dataset"] == "demo-dialogues"


def test_saved_dialogues_say_what_they_were_made_with(demo: Project, engine: Engine, tmp_path: Path) -> None:
    session, lines = demo.dataset.split("test")[0], []
    saved = saved_folder(tmp_path / "saved", engine, lines.append)
    words = {**engine.session(play(engine, session, ["cm_ntm"])).model_dump(), "id": "dialogue-u"}
    words["turns"][0]["captions"] = ("more\u2028red",)  # a line separator that JSON leaves as it is
    for kept in (Session.model_validate(words), engine.session(play(engine, session, ["cm_ntm", "ewma"]))):
        saved.add(kept, [engine.trained[name] for name in ("cm_ntm", "ewma")])
    assert (
        len((tmp_path / "saved/sessions.jsonl").read_text(encoding="utf-8").strip("\n").split("\n"))
        == len(demo.dataset.split("train")) + 2
    )
    cm_ntm = engine.trained["cm_ntm"]
    weights = json.loads((cm_ntm.folder.path / "model.json").read_text())["sha256"]
    for models in saved.about["dialogues"].values():
        assert models[0] == {"label": "cm_ntm", "run": cm_ntm.run, "weights": weights}
    assert saved.about["made_with"]["store"] == demo.workspace.store(demo.spec, demo.dataset).fingerprint

    saved_folder(tmp_path / "saved", engine, lines.append)
    assert lines == []
    alone = open_engine(demo.experiment(), [cm_ntm.run], cached_only=True)
    saved_folder(tmp_path / "saved", alone, lines.append)
    assert len(lines) == 1 and "2 of 2 saved dialogues are of other runs (ewma run" in lines[0]


def test_saved_dialogues_of_other_data_are_not_gone_on_with(demo: Project, engine: Engine, tmp_path: Path) -> None:
    saved_folder(tmp_path / "saved", engine, print)
    first, *others = sorted(demo.dataset.galleries, key=lambda g: g.split)
    assert first.split == "test"
    turned = first.model_copy(update={"images": first.images[::-1]})
    fewer = first.model_copy(update={"images": first.images[1:]})
    for gallery in (turned, fewer):
        dataset = demo.dataset.model_copy(update={"galleries": (gallery, *others)})
        found = open_engine(Experiment(demo.spec, dataset, demo.workspace, "cpu"), cached_only=True)
        if gallery is turned:  # order is no content
            saved_folder(tmp_path / "saved", found, print)
        else:
            why = rf"made with other data \(galleries\.{first.category}: \"\w+.* -> .*name a new folder with --save"
            with pytest.raises(IncompleteError, match=why):
                saved_folder(tmp_path / "saved", found, print)
    (tmp_path / "saved/dialogues.json").write_text('{"of": "demo", "options": {}}')  # of a version that did not say
    with pytest.raises(IncompleteError, match=r"store: null -> "):
        saved_folder(tmp_path / "saved", engine, print)


def test_a_folder_with_other_files_is_not_written_to(demo: Project, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(Exception, match="other files"):
        SavedDialogues(tmp_path, demo.dataset, {})
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_session_needs_two_turns_and_catalogue_images(demo: Project, engine: Engine) -> None:
    session = demo.dataset.split("test")[0]
    talk = engine.start(session.category, engine.numbers[session.turns[0].reference])
    engine.say(talk, "red")
    with pytest.raises(RequestError, match="two turns"):
        engine.session(talk)
    row = engine.queries.image_row(session.target)
    own = engine.start(session.category, upload=(row, b"jpeg"))
    engine.say(own, "red")
    engine.say(own, "long sleeves")
    with pytest.raises(RequestError, match="uploaded"):
        engine.session(own)
    assert all(torch.isfinite(d.current).all() for d in own.models.values())


def test_a_run_given_by_id_is_the_only_one_offered(demo: Project) -> None:
    run = trained_runs(demo.experiment())[0][-1].run
    engine = open_engine(demo.experiment(), [run[:8]], cached_only=True)
    assert list(engine.trained) == ["cm_ntm"] and engine.trained["cm_ntm"].run == run
    assert load_spec(str(demo.file)).name == "mini"
