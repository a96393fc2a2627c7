"""The server: what it answers, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("starlette", reason="no web packages: pip install 'fashion-ntm[serve]'")
pytest.importorskip("httpx", reason="no httpx: pip install 'fashion-ntm[test]'")

import httpx

from cli import main
from pipeline.views.serve.app import make_app
from pipeline.views.serve.guard import is_loopback
from pipeline.views.serve.limits import Limits
from pipeline.views.serve.run import open_engine
from pipeline.views.serve.saved import SavedDialogues
from tests.hostile.test_disk import fill, small_disk
from tests.pipeline.small_demo import Project, served
from tests.processes import forked


@pytest.fixture(scope="module")
def engine(demo: Project) -> Any:
    limits = Limits(upload_bytes=60_000, upload_pixels=250_000)
    return open_engine(demo.experiment(), limits=limits)


@pytest.fixture(scope="module")
def client(engine: Any) -> Iterator[Any]:
    with (
        served(make_app(engine, "Small", hosts=("localhost",))) as address,
        httpx.Client(base_url=address, timeout=60) as made,
    ):
        yield made


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 60)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (200, 30, 60)).save(out, kind)
    return out.getvalue()


def test_a_dialogue_over_http(client: Any, engine: Any, demo: Project) -> None:
    about = client.get("/api/about").json()
    assert about["live"] and about["starts"] == "upload" and about["categories"]["dress"] == 28
    session = demo.dataset.split("test")[0]
    start = {
        "category": session.category,
        "image": engine.numbers[session.turns[0].reference],
        "models": ["cm_ntm", "last"],
    }
    view = client.post("/api/dialogues", json=start).json()
    path = f"/api/dialogues/{view['id']}"
    assert client.get(f"{path}/export").status_code == 400
    for turn in session.turns:
        view = client.post(f"{path}/say", json={"text": turn.text}).json()
    assert len(view["turns"]) == len(session.turns) and [m["label"] for m in view["models"]] == ["cm_ntm", "last"]
    assert all(len(m["results"]) == 12 for m in view["models"]) and view["exports"]
    scores = [r["score"] for r in view["models"][0]["results"]]
    assert scores == sorted(scores, reverse=True)
    assert client.get(path).json() == view
    line = client.get(f"{path}/export")
    assert (
        "sessions.jsonl" in line.headers["content-disposition"]
        and json.loads(line.text)["category"] == session.category
    )
    assert client.post(f"{path}/save", json={}).status_code == 400  # started without a folder
    shown = client.get(f"/{view['models'][0]['results'][0]['src']}?w=192")
    assert shown.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(shown.content)).size == (64, 64)


def test_browsing_finds_images_by_words(client: Any) -> None:
    found = client.get("/api/images", params={"category": "dress", "q": "DRESS-TEST"}).json()
    assert found["total"] == 28 and len(found["images"]) == 28
    assert client.get("/api/images", params={"category": "dress", "q": "zeppelin"}).json()["total"] == 0
    assert client.get("/api/images", params={"category": "dress", "first": "20"}).json()["first"] == 20
    assert len(client.get("/api/images", params={"category": "dress", "first": "-5"}).json()["images"]) == 28
    assert client.get("/api/images", params={"category": "hat"}).status_code == 400


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_uploaded_image_starts_a_dialogue(client: Any, kind: str) -> None:
    view = client.post("/api/uploads", params={"category": "shirt"}, content=picture(kind)).json()
    assert view["chosen"]["number"] is None
    assert client.get("/" + view["chosen"]["src"]).headers["content-type"] == "image/jpeg"
    said = client.post(f"/api/dialogues/{view['id']}/say", json={"text": "in green"}).json()
    assert len(said["models"][0]["results"]) == 12 and said["exports"] is False


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"", 400, "empty|not an image"),
        (b"<svg onload=alert(1)>", 400, "not an image"),
        (picture()[:50], 400, "cannot be decoded|not an image"),
        (picture(size=(600, 600)), 400, "limit 250000"),
        (b"\x89PNG" + bytes(60_001), 413, "larger than"),
    ],
)
def test_an_upload_that_is_no_usable_image_is_refused(client: Any, data: bytes, status: int, said: str) -> None:
    import re

    answer = client.post("/api/uploads", params={"category": "shirt"}, content=data)
    assert answer.status_code == status and re.search(said, answer.json()["error"])


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000)])
def test_an_image_that_grows_when_it_is_resized_is_refused(client: Any, engine: Any, size: tuple[int, int]) -> None:
    """The shorter side becomes the model's own size: tens of millions of pixels, of a file of some hundred bytes."""
    needed = engine.queries.extractor.prepared_pixels(*size)
    side = engine.queries.extractor.processor.size.shortest_edge
    assert needed == side * side * 20_000 > 10_000_000
    began = engine.queries.extractor.calls
    answer = client.post("/api/uploads", params={"category": "shirt"}, content=picture(size=size))
    assert answer.status_code == 413 and f"{needed:,} pixels, limit 250,000" in answer.json()["error"]
    assert engine.queries.extractor.calls == began


def test_few_uploads_are_decoded_at_once(client: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, lock, running, seen = engine.queries.upload, threading.Lock(), [0], []

    def slow(image: Any) -> Any:
        with lock:
            running[0] += 1
            seen.append(running[0])
        time.sleep(0.1)
        with lock:
            running[0] -= 1
        return real(image)

    monkeypatch.setattr(engine.queries, "upload", slow)
    with ThreadPoolExecutor(8) as pool:
        send = [pool.submit(client.post, "/api/uploads?category=shirt", content=picture()) for _ in range(8)]
        assert [answer.result().status_code for answer in send] == [200] * 8
    assert len(seen) == 8 and max(seen) <= engine.limits.decodes


def test_uploads_hold_a_bounded_number_of_bytes(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clients stop in mid-file; what they sent counts until they go."""
    monkeypatch.setattr(engine, "limits", engine.limits.model_copy(update={"upload_buffer": 100_000}))
    app = make_app(engine, "Small")
    uploads = app.state.uploads

    def until(reached: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not reached() and time.monotonic() < end:
            time.sleep(0.01)
        assert reached()

    with served(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        head = b"POST /api/uploads?category=shirt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n"
        where = ("127.0.0.1", int(address.rsplit(":", 1)[1]))
        stopped = [socket.create_connection(where) for _ in range(2)]
        for one in stopped:
            one.sendall(head + bytes(49_900))
        until(lambda: uploads.held == 2 * 49_900)
        answer = client.post("/api/uploads?category=shirt", content=picture() + bytes(500))
        assert answer.status_code == 503 and "try again" in answer.json()["error"]
        assert client.get("/api/about").status_code == 200
        for one in stopped:
            one.close()
        until(lambda: uploads.held == 0)
        assert client.post("/api/uploads?category=shirt", content=picture()).status_code == 200
        until(lambda: uploads.held == 0)


def test_an_endless_upload_is_cut(client: Any) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(10_000)

    try:
        answer = client.post("/api/uploads", params={"category": "shirt"}, content=endless())
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the server had answered and closed before all was sent


@pytest.mark.parametrize(
    "path",
    [
        *("/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/engine.py", "/static//etc/passwd"),
        *("/image/-1", "/image/..%2f..%2fetc%2fpasswd", "/image/99999999", "/image/0/../../x", "/etc/passwd"),
        *("/api/dialogues/nobody", "/api/dialogues/..%2f..%2fabout/export"),
    ],
)
def test_no_path_leads_outside(client: Any, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (404, 405) and "import" not in answer.text and "root:" not in answer.text


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 16_000,
        b'{"text": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"order": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"image": ' + b"9" * 5_000 + b"}",
        b'{"image": ' + b"9" * 4_000 + b"}",
        b'{"text": 1e999, "image": 1e999, "order": [1e999]}',
        b'{"text": "\\ud800", "image": "\\ud800", "order": "\\ud800"}',
        b"{",
        b"[]",
        b"3",
        b'{"text": 5}',
        b"\xff\xfe",
        b'{"text": "' + b"a" * 20_000 + b'"}',
        b"",
    ],
)
def test_a_broken_request_gets_a_message_and_not_a_fault(
    client: Any, engine: Any, demo: Project, content: bytes
) -> None:
    start = {"category": "dress", "image": engine.numbers[demo.dataset.gallery("dress", "test").images[0]]}
    view = client.post("/api/dialogues", json=start).json()
    path = f"/api/dialogues/{view['id']}"
    for name in ("say", "choose", "permute"):
        answer = client.post(f"{path}/{name}", content=content)
        assert 400 <= answer.status_code < 500 and answer.json()["error"], name


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["say", "choose", "permute", "models", "back"]),
    key=st.sampled_from(["text", "image", "order", "models", "category", "description"]),
    value=anything,
)
def test_no_request_makes_the_server_fail(
    client: Any, engine: Any, demo: Project, name: str, key: str, value: Any
) -> None:
    session = demo.dataset.split("test")[0]
    start = {"category": session.category, "image": engine.numbers[session.target]}
    view = client.post("/api/dialogues", json=start).json()
    client.post(f"/api/dialogues/{view['id']}/say", json={"text": "red"})
    # As text: httpx itself refuses the NaN and Infinity that another client may send.
    answer = client.post(f"/api/dialogues/{view['id']}/{name}", content=json.dumps({key: value}))
    assert answer.status_code < 500
    assert client.post("/api/dialogues", content=json.dumps({**start, key: value})).status_code < 500


@pytest.mark.parametrize("name", ["Host", "Origin"])
@pytest.mark.parametrize("value", ["http://[::1", "[", "[::1", "[x]:1"])
def test_a_malformed_header_gets_a_message_and_not_a_fault(client: Any, name: str, value: str) -> None:
    answer = client.post("/api/dialogues", json={"category": "dress", "image": 0}, headers={name: value})
    assert answer.status_code in (400, 403, 421) and answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["/image/" + "9" * 5_000, "/image/x", "/static/%00", "/api/images?first=" + "9" * 5_000]
)
def test_a_huge_number_in_an_address_is_no_fault(client: Any, path: str) -> None:
    assert client.get(path).status_code in (400, 404)


def test_a_foreign_host_name_and_a_foreign_page_are_refused(client: Any) -> None:
    assert client.get("/api/about", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("/api/about", headers={"Host": "localhost:1234"}).status_code == 200
    start = {"category": "dress", "image": 0}
    assert client.post("/api/dialogues", json=start, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/dialogues", json=start, headers={"Origin": "null"}).status_code == 403
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]


def test_off_loopback_nothing_is_shown_without_the_token(engine: Any) -> None:
    with served(make_app(engine, "Small", token="right")) as address, httpx.Client(base_url=address) as client:
        for path in ("/", "/api/about", "/image/0", "/static/app.js"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.post("/api/dialogues", json={}).status_code == 401
        assert client.get("/api/about", headers={"Authorization": "Bearer right"}).status_code == 200
        assert "set-cookie" not in client.get("/", params={"token": "wrong"}).headers
        first = client.get("/", params={"token": "right"})
        assert first.status_code == 200 and "HttpOnly" in first.headers["set-cookie"]
        assert client.get("/api/about").status_code == 200  # the cookie


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.5", False),
        ("example.org", False),
    ],
)
def test_which_addresses_are_this_machines_own(host: str, own: bool) -> None:
    assert is_loopback(host) is own


def test_markup_in_a_caption_stays_data(words: Project) -> None:
    engine = open_engine(words.experiment())
    with served(make_app(engine, "<b>Small</b>")) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert "<b>Small" not in client.get("/").text
        assert client.get("/api/about").json()["starts"] == "describe"
        view = client.post("/api/dialogues", json={"category": "dress", "description": "a red dress"}).json()
        said = client.post(f"/api/dialogues/{view['id']}/say", json={"text": "more blue"}).json()
        assert said["models"][0]["results"][0]["src"] is None and said["models"][0]["results"][0]["words"]
        assert (
            "describe the image"
            in client.post("/api/uploads", params={"category": "dress"}, content=picture()).json()["error"]
        )


def test_the_command_serves_until_it_is_interrupted(demo: Project) -> None:
    words = ["serve", str(demo.file), *demo.options, "--cached-only", "--device", "cpu", "--port"]
    with forked(main, [*words, "0"]) as server:
        address = server.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:") and "token" not in address
        assert httpx.get(address + "api/about", timeout=60).json()["live"] is False
        with forked(main, [*words, address.rstrip("/").rsplit(":", 1)[1]]) as second:
            code, _, errors = second.finish()
            assert code == 1 and "--port" in errors
        os.killpg(server.pid, signal.SIGINT)
        assert server.finish()[0] in (0, 130)


def test_saving_a_dialogue_on_a_full_disk(demo: Project, engine: Any, tmp_path: Path) -> None:
    """Status 507 and one line; the dialogue is kept, and is saved when there is space."""
    session = demo.dataset.split("test")[0]
    with small_disk(tmp_path) as disk:
        sessions = disk / "saved/sessions.jsonl"
        app = make_app(engine, "Small", saved=SavedDialogues(disk / "saved", demo.dataset, engine.made_with))
        before = sessions.read_bytes()
        with served(app) as address, httpx.Client(base_url=address, timeout=60) as client:
            start = {"category": session.category, "image": engine.numbers[session.turns[0].reference]}
            path = f"/api/dialogues/{client.post('/api/dialogues', json=start).json()['id']}"
            for turn in session.turns:
                assert client.post(f"{path}/say", json={"text": turn.text}).status_code == 200
            filler = fill(disk)
            answer = client.post(f"{path}/save", json={})
            text = answer.json()["error"]
            assert answer.status_code == 507 and f"{disk}/saved/" in text and "\n" not in text
            assert "No space left on device" in text and text.endswith("free space on that disk, and try again")
            assert sessions.read_bytes() == before and client.get(path).status_code == 200
            filler.unlink()
            assert client.post(f"{path}/save", json={}).status_code == 200
        after = sessions.read_bytes()
    assert after.startswith(before) and after.count(b"\n") == before.count(b"\n") + 1
