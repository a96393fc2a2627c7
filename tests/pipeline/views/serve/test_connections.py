"""The server on connections that stop: requests that do not arrive, and visitors who leave in the middle."""

from __future__ import annotations

import socket
from typing import Any

import pytest

pytest.importorskip("starlette", reason="no web packages: pip install 'fashion-ntm[serve]'")
pytest.importorskip("httpx", reason="no httpx: pip install 'fashion-ntm[test]'")

import httpx

from pipeline.views.serve.app import make_app
from pipeline.views.serve.run import open_engine
from tests.pipeline.small_demo import Project, served

WHOLE = b"GET /static/none HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def engine(demo: Project) -> Any:
    return open_engine(demo.experiment())


def connect(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=30)


def post(path: str, length: int, sent: bytes) -> bytes:
    """The beginning of a request whose body has ``length`` bytes."""
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode() + sent


@pytest.mark.parametrize(
    "sent", [post("/api/uploads?category=shirt", 60_000, b"abc"), post("/api/dialogues", 100, b"{")]
)
def test_a_body_that_does_not_arrive_is_given_up(engine: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(engine, "limits", engine.limits.model_copy(update={"upload_seconds": 0.2}))
    app = make_app(engine, "Small")
    with served(app) as address, connect(address) as one:
        one.sendall(sent)
        assert one.recv(100).startswith(b"HTTP/1.1 408")
    assert app.state.uploads.held == 0


@pytest.mark.parametrize(("before", "sent"), [(b"", b""), (b"", WHOLE[:-9]), (WHOLE, WHOLE[:-9])])
def test_headers_that_do_not_arrive_close_the_connection(
    engine: Any, monkeypatch: pytest.MonkeyPatch, before: bytes, sent: bytes
) -> None:
    """Of a first request, and of one on a connection in use."""
    monkeypatch.setattr("pipeline.views.serve.connections.HEADER_SECONDS", 0.2)
    with served(make_app(engine, "Small")) as address, connect(address) as one:
        if before:
            one.sendall(before)
            assert one.recv(4096).startswith(b"HTTP/1.1 404")
        one.sendall(sent)
        answer = b"".join(iter(lambda: one.recv(4096), b""))
        assert answer.endswith(b"Connection: close\r\n\r\n") == bool(sent)


def test_a_visitor_who_leaves_in_the_middle_leaves_no_traceback(engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with served(make_app(engine, "Small")) as address:
        for path in ("/api/dialogues", "/api/uploads?category=shirt"):
            with connect(address) as one:
                one.sendall(post(path, 100, b"{"))
        assert httpx.get(address + "/api/about", timeout=60).status_code == 200
    assert not capfd.readouterr().err
