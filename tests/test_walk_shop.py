"""A shop's walk: the commands of "A catalog alone" in the documentation, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cli import main
from manifests.load import load_dataset, load_spec
from pipeline.core.workspace import Workspace
from pipeline.demo.examples import examples
from pipeline.jobs.experiment import Experiment
from pipeline.views.serve.run import open_engine
from tests.pipeline.small_demo import Project, accessible, chromium, page_of, served, small_demo

PAGE = Path(__file__).resolve().parent.parent / "docs" / "bring-your-own-dataset.md"
SECTION = PAGE.read_text(encoding="utf-8").partition("## A catalog alone")[2].partition("\n## ")[0]
MODEL = "package:pipeline/demo/model"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rendered garments, the documentation's spec with the shipped model, and a photo outside."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "photos").mkdir()
    found = examples(18, 64, "shop")
    for n, example in enumerate(found[:-1]):
        example.image.convert("RGB").save(folder / "photos" / f"{n}.jpg")
    found[-1].image.convert("RGB").save(folder / "photo.jpg")
    spec = re.search(r"```toml\n(.*?)```", SECTION, re.S)
    assert spec
    (folder / "shop.toml").write_text(re.sub(r'model = "[^"]*"', f'model = "{MODEL}"', spec[1]))
    return folder


def call(words: list[str]) -> Result:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return done


def test_the_commands_of_the_page(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    lines = [line for line in SECTION.splitlines() if line.startswith("python cli.py")]
    commands = [shlex.split(line.replace("DIR", "."), comments=True)[2:] for line in lines]
    assert [words[0] for words in commands] == ["index", "search", "search", "search", "serve"]
    index, text, both, html, _ = commands
    told = "gallery all, answered by ewma (--run: one of 2)"
    first = call(index).stdout
    assert "17 extracted" in first and re.search(r"rows/s; thread-seconds: \w+ \d", first)
    assert "0 extracted, 17 reused" in call(index).stdout
    assert len(call(text).stdout.splitlines()) == 10
    found, said = json.loads(call(both).stdout), call(both).stderr
    assert told in said and "answered by" not in call(text).stderr
    assert found["model"] == "ewma" and len(found["results"]) == 10
    scores = [row["score"] for row in found["results"]]
    assert scores == sorted(scores, reverse=True) and (shop / "photos" / found["results"][0]["file"]).is_file()
    call(html)
    page = (shop / "found.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 11 and "http" not in page.replace("http-equiv", "")
    Image.new("RGB", (64, 64), (200, 0, 0)).save(shop / "photos" / "new.jpg")
    assert "1 extracted, 17 reused" in call(index).stdout
    (shop / "photos" / "new.jpg").unlink()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "give --image, --text or both"),
        (["--image", "nothing.jpg"], "neither a catalog id nor a file"),
        (["--text", "red", "--gallery", "shoes"], "no such gallery"),
        (["--image", "photo.jpg", "--text", "red", "--run", "abcd"], "no finished run has this id"),
        (["--text", "red", "--file", "a.html"], "add --html"),
    ],
)
def test_what_cannot_be_searched_is_explained(
    shop: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    monkeypatch.chdir(shop)
    call(["index", "shop.toml", "--data", "."])
    done = CliRunner().invoke(main, ["search", "shop.toml", "--data", ".", *words])
    assert done.exit_code in (1, 2, 3, 4) and expected in done.output and "Traceback" not in done.output


def test_a_run_trained_on_sessions_answers_on_the_catalogue(
    shop: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small demo's runs have the same extractor and composer as a catalog with its composer's weights."""
    demo: Project = small_demo(tmp_path_factory.getbasetemp())
    monkeypatch.chdir(shop)
    own = ["shop.toml", "--data", ".", "--out", str(demo.folder), "--set", "composer.name=gated"]
    own += ["--set", f"composer.weights={Path(__file__).resolve().parent.parent / 'pipeline/demo/model/composer'}"]
    call(["index", *own])
    run = next(r for r in demo.experiment().current_runs() if r.model == "cm_ntm")
    found = call(
        [
            "search",
            *own,
            "--image",
            "photo.jpg",
            "--text",
            "in red",
            "--run",
            demo.experiment().folder(run).id,
            "--json",
        ]
    )
    assert json.loads(found.stdout)["model"] == "cm_ntm"
    done = CliRunner().invoke(main, ["index", "shop.toml", "--data", ".", "--set", "composer.name=gated"])
    assert done.exit_code == 3 and "composer.weights" in done.output


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.slow  # the search page in a browser: views/serve/test_page.py
def test_the_pages_in_a_browser(shop: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("starlette", reason="no web packages: pip install 'fashion-ntm[serve]'")
    from pipeline.views.serve.app import make_app

    monkeypatch.chdir(shop)
    call(["index", "shop.toml", "--data", "."])
    call(["search", "shop.toml", "--data", ".", "--image", "photo.jpg", "--text", "in red", "--html"])
    for look in ({"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}):
        with page_of(browser, **look) as page:
            page.goto((shop / "search.html").as_uri())
            assert page.locator("ol.results li").count() == 10 and accessible(page) == []
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    spec = load_spec("shop.toml")
    engine = open_engine(Experiment(spec, load_dataset(spec, shop), Workspace(shop / "out"), "cpu"))
    with served(make_app(engine, "Shop")) as address, page_of(browser) as page:
        page.goto(address)
        page.locator("#catalogue .tile").first.click()
        page.fill("#text", "in red")
        page.press("#text", "Enter")
        page.locator("#turns li").first.wait_for()
        assert page.locator("#results .tile").count() == 12


NEED_SESSIONS = {
    **{
        name: []
        for name in ("train", "evaluate", "run", "table", "turns", "history", "rerank", "report", "splits", "leaks")
    },
    "results": ["--to", "x"],
    "tune": ["--model", "cm_ntm"],
    "study ask": [],
}


@pytest.mark.parametrize("name", NEED_SESSIONS)
def test_a_command_that_needs_sessions_says_what_a_catalogue_is_for(
    shop: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(shop)
    done = CliRunner().invoke(main, [*name.split(), "shop.toml", "--data", ".", *NEED_SESSIONS[name]])
    assert done.exit_code == 3 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "dataset 'photos' has no sessions" in line
    printed = re.findall(r"`fashion-ntm (.*?)`", line)
    assert [shlex.split(command)[0] for command in printed] == ["search", "serve"]
    if name == "train":
        call(["index", "shop.toml", "--data", "."])
        assert len(call(shlex.split(printed[0])).stdout.splitlines()) == 10


def test_the_other_commands_work_on_a_catalogue(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    spec = ["shop.toml", "--data", "."]
    for words in (
        ["validate", *spec],
        ["plan", *spec],
        ["extract", *spec],
        ["status", *spec],
    ):
        call(words)
    assert "photos (images: a catalog for `index`)" in call(["doctor", "--data", "."]).stdout
    for name in ("verify", "gc", "repair", "explain"):
        more = ["--dry-run"] if name == "gc" else []
        call(["cache", name, *more, *spec])
    call(["cache", "export", *spec, "--to", "features"])
    done = CliRunner().invoke(main, ["fit-composer", *spec])
    assert done.exit_code == 3 and "has nothing to fit" in done.stderr
