"""A trained small demo for tests of what people look at, a real server, and a real browser. Built once a process."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from manifests.datasets.jsonl import export
from manifests.load import load_dataset, load_spec
from manifests.schema import Dataset, Image, RunSpec, Turn
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.stage1 import extract_spec, fit_composer_spec
from pipeline.jobs.stage2 import evaluate, train
from pipeline.views.serve.run import server_config
from tests.caption_project import CAPTIONS
from tests.pipeline.extraction.conftest import save_bert
from tests.worlds import world

DEMO = """
name = "mini"
title = "A small demo"
[dataset]
name = "demo"
folder = "catalogue"
size = 64
train_families = 1
test_families = 1
[extractor]
name = "clip"
model = "package:pipeline/demo/model"
[composer]
name = "gated"
weights = "package:pipeline/demo/model/composer"
[training]
epochs = 2
batch_size = 30
learning_rate = 1e-3
scale = 20.0
[models.last]
[models.avg]
[models.cat]
[models.ewma]
[models.cm_ntm]
stages = 2
hidden = 16
"""
WORDS = f"""
name = "words"
{CAPTIONS}
[composer.fit]
epochs = 1
[training]
epochs = 1
batch_size = 30
[models.last]
[models.v_ntm]
hidden = 8
"""
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Project:
    """A spec with everything extracted, trained and evaluated in ``folder`` (its data and its output)."""

    spec: RunSpec
    file: Path
    folder: Path
    dataset: Dataset
    workspace: Workspace

    def experiment(self) -> Experiment:
        return Experiment(self.spec, self.dataset, self.workspace, "cpu")

    @property
    def options(self) -> list[str]:
        return ["--data", str(self.folder), "--out", str(self.folder)]


@functools.cache
def small_demo(base: Path) -> Project:
    """The rendered demo with one family of garments a category, the shipped CLIP, five memory models."""
    return _made(base / "small_demo", DEMO)


@functools.cache
def small_words(base: Path) -> Project:
    """A caption gallery; one caption and one feedback try to be markup."""
    folder = base / "small_words"
    made = world(("dress",))
    session = next(s for s in made.sessions if s.split == "test")
    turns = (session.turns[0].model_copy(update={"captions": (EVIL,)}), *session.turns[1:])
    sessions = tuple(s.model_copy(update={"turns": turns}) if s is session else s for s in made.sessions)
    images = {**made.images, session.target: Image(id=session.target, caption=f"a dress {EVIL}")}
    export(made.model_copy(update={"sessions": sessions, "images": images}), folder / "world")
    save_bert(folder / "model")
    assert isinstance(session.turns[0], Turn)
    return _made(folder, WORDS.format(model=folder / "model"))


def _made(folder: Path, text: str) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "spec.toml"
    file.write_text(text, encoding="utf-8")
    spec, workspace = load_spec(str(file)), Workspace(folder)
    dataset = load_dataset(spec, folder)
    if extract_spec(spec, dataset, workspace, "cpu").composed is None:
        fit_composer_spec(spec, dataset, workspace)
    list(train(Experiment(spec, dataset, workspace, "cpu")))
    evaluate(Experiment(spec, dataset, workspace, "cpu"))
    return Project(spec, file, folder, dataset, workspace)


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of ``app`` on a real server, in a thread, on a free port of loopback."""
    uvicorn = pytest.importorskip("uvicorn")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(server_config(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium; the test is skipped, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'fashion-ntm[test]'")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("FASHION_NTM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium here: install it (apt-get install chromium), or set FASHION_NTM_CHROMIUM to its path")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def page_of(browser: Any, **context: Any) -> Iterator[Any]:
    """A page in a fresh context; at its end there must be no error in the console."""
    opened = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context})
    page, errors = opened.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(60_000)
    try:
        yield page
        assert errors == []
    finally:
        opened.close()


def accessible(page: Any) -> list[str]:
    """What axe-core finds wrong on the page: one line a rule and element."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install 'fashion-ntm[test]'")
    found = axe.Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:160]}" for rule in found for node in rule["nodes"]]


def no_sideways_scroll(page: Any) -> bool:
    wide, shown = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    return wide <= shown
