"""The search page in a real browser."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="no web packages: pip install 'fashion-ntm[serve]'")

from pipeline.views.serve.app import make_app
from pipeline.views.serve.run import open_engine
from pipeline.views.serve.saved import SavedDialogues
from tests.pipeline.small_demo import Project, accessible, no_sideways_scroll, page_of, served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved") / "dialogues"


@pytest.fixture(scope="module")
def address(demo: Project, folder: Path) -> Iterator[str]:
    engine = open_engine(demo.experiment())
    with served(
        make_app(engine, "Small", hosts=("localhost",), saved=SavedDialogues(folder, demo.dataset, engine.made_with))
    ) as found:
        yield found


def begin(page: Any, address: str) -> None:
    page.goto(address)
    page.locator("#catalogue .tile").nth(3).click()
    page.locator("#dialogue").wait_for()


def tell(page: Any, text: str) -> None:
    turns = page.locator("#turns li").count()
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.locator("#turns li").nth(turns).wait_for()


def results(page: Any, column: int = 0) -> list[str]:
    return [t.get_attribute("title") for t in page.locator("#results > div").nth(column).locator(".tile").all()]


def test_three_turns_back_permute_compare_export(browser: Any, address: str, folder: Path) -> None:
    with page_of(browser) as page:
        begin(page, address)
        seen = []
        for text in ("long sleeves", "in red", "with a belt"):
            tell(page, text)
            seen.append(results(page))
            assert len(seen[-1]) == 12
        assert seen[0] != seen[1] != seen[2]
        page.click("#back")
        page.locator("#turns li").nth(2).wait_for(state="detached")
        assert results(page) == seen[1]
        page.locator("#results .tile").nth(4).click()
        page.locator("#results .tile").nth(4).and_(page.locator("[aria-pressed=true]")).wait_for()
        assert page.locator("#reference img").get_attribute("alt") == page.locator("#results .tile img").nth(
            4
        ).get_attribute("alt")
        tell(page, "with a belt")
        page.select_option("#other", "ewma")
        page.locator("#results > div").nth(1).wait_for()
        assert len(results(page, 1)) == 12 and page.locator("#results h3").all_inner_texts() == [
            "FashionNTM (CM-NTM)",
            "ST + EWMA",
        ]
        before = page.locator("#turns q").all_inner_texts()
        page.get_by_role("button", name="Say turn 3 earlier").click()
        page.get_by_text("heard anew").wait_for()
        assert page.locator("#turns q").all_inner_texts() == [before[0], before[2], before[1]]
        with page.expect_download() as download:
            page.click("#export")
        assert (
            download.value.suggested_filename == "sessions.jsonl"
            and b'"turns"' in Path(download.value.path()).read_bytes()
        )
        lines = (folder / "sessions.jsonl").read_text(encoding="utf-8").count("\n")
        page.click("#save")
        page.get_by_text("Saved.").wait_for()
        assert (folder / "sessions.jsonl").read_text(encoding="utf-8").count("\n") == lines + 1
        shown = page.locator("#turns q").all_inner_texts()
        page.reload()
        page.locator("#turns li").nth(2).wait_for()
        assert page.locator("#turns q").all_inner_texts() == shown, "a dialogue outlives a reload"


def test_by_keyboard_alone(browser: Any, address: str) -> None:
    with page_of(browser) as page:
        page.goto(address)
        page.locator("#catalogue .tile").first.wait_for()
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "find"
        page.locator("#find").press("Escape")
        order = []
        for _ in range(8):
            page.keyboard.press("Tab")
            order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        # from the search field on: upload, then the images in reading order
        assert order[0] == "upload" and order[1] == "tile"
        page.locator("#catalogue .tile").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("[...document.querySelectorAll('#catalogue .tile')].indexOf(document.activeElement)") == 1
        page.keyboard.press("Enter")
        page.locator("#dialogue").wait_for()
        page.get_by_text("Now say what").wait_for()
        assert page.evaluate("document.activeElement.id") == "text"
        page.keyboard.type("in green")
        page.keyboard.press("Enter")
        page.locator("#turns li").first.wait_for()
        page.get_by_text("results below").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("5")
        page.get_by_text("refer to result 5").wait_for()
        page.keyboard.press("b")
        page.get_by_text("taken back").wait_for()
        assert page.locator("#turns li").count() == 0
        page.keyboard.press("n")
        page.locator("#catalogue").wait_for()
        assert page.locator("#dialogue").is_hidden()


@pytest.mark.slow
def test_it_is_accessible_at_every_width_and_in_both_schemes(browser: Any, address: str) -> None:
    def look(page: Any) -> None:
        for scheme, size in (("light", {"width": 1200, "height": 900}), ("dark", {"width": 360, "height": 740})):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size(size)
            assert accessible(page) == [] and no_sideways_scroll(page)

    with page_of(browser) as page:
        page.goto(address)
        page.locator("#catalogue .tile").first.wait_for()
        look(page)
        page.select_option("#other", "last")
        page.locator("#catalogue .tile").first.click()
        tell(page, "in " + "very " * 40 + "red")
        look(page)
        page.get_by_text("results below").wait_for()
        assert page.evaluate("[...document.images].every(i => i.alt.length > 0)")


def test_an_uploaded_image_starts_a_dialogue_and_a_wrong_one_is_explained(browser: Any, address: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (80, 120), (20, 90, 200)).save(out, "PNG")
    with page_of(browser) as page:
        page.goto(address)
        page.locator("#catalogue .tile").first.wait_for()
        page.set_input_files("#upload", {"name": "a.png", "mimeType": "image/png", "buffer": out.getvalue()})
        page.locator("#reference img").wait_for()
        assert page.locator("#reference img").get_attribute("alt") == "your own image"
        tell(page, "in red")
        assert len(results(page)) == 12 and page.locator("#export").is_hidden()


def test_without_an_extractor_the_page_says_so_and_offers_cached_texts(browser: Any, demo: Project) -> None:
    engine = open_engine(demo.experiment(), cached_only=True)
    with served(make_app(engine, "Small")) as address, page_of(browser) as page:
        begin(page, address)
        assert "only texts that are already cached" in page.inner_text("#cached-only")
        known = page.locator("#known option").first.get_attribute("value")
        tell(page, known)
        assert len(results(page)) == 12 and page.locator("#upload-box").is_hidden()
