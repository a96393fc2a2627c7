"""Web application: a page, its pictures, and a small JSON interface. State is kept in ``engine``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from importlib import resources
from typing import Any, TypeVar

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from manifests.errors import FashionNTMError, advice, disk_problem
from pipeline.views.retrieval.pictures import Pictures, render
from pipeline.views.retrieval.queries import known_texts
from pipeline.views.serve.engine import UPLOAD, Engine, Talk, described_row, upload_row
from pipeline.views.serve.guard import Guard
from pipeline.views.serve.limits import Limits, RequestError, clean_text, number_of
from pipeline.views.serve.saved import SavedDialogues

T = TypeVar("T")
API = 1  # version of the JSON interface (docs/serve-api.json); a change that breaks a client increments it
PAGE = 48  # catalog images per page of the chooser
DEPTH = 4  # largest nesting depth of a request's JSON
SIZES = (96, 192, 384)
FILES = resources.files("pipeline.views.serve")
# request: method of the engine, and the key of its argument
ACTIONS = {"say": ("say", "text"), "choose": ("choose", "image"), "permute": ("permute", "order")}
ACTIONS |= {"back": ("back", ""), "models": ("compare", "models")}


def make_app(
    engine: Engine,
    title: str,
    token: str | None = None,
    hosts: tuple[str, ...] = (),
    saved: SavedDialogues | None = None,
) -> Starlette:
    """Return the application. ``token``: required in every request (always set off loopback); ``hosts``: host names
    that it accepts. ``saved``: destination of the page's Save button; without it there is no such button.
    """
    page = _Page(engine, title, saved)
    routes = [
        Route("/", page.index),
        Route("/api/about", page.about),
        Route("/api/images", page.images),
        Route("/image/{number}", page.image),
        Route("/api/dialogues", page.start, methods=["POST"]),
        Route("/api/uploads", page.upload, methods=["POST"]),
        Route("/api/dialogues/{id}", page.show),
        Route("/api/dialogues/{id}/start-image", page.start_image),
        Route("/api/dialogues/{id}/export", page.export),
        *(Route(f"/api/dialogues/{{id}}/{name}", page.act(name), methods=["POST"]) for name in (*ACTIONS, "save")),
        Mount("/static", StaticFiles(directory=str(FILES / "static"))),
    ]
    guard = Middleware(Guard, token=token, hosts=hosts)
    app = Starlette(routes=routes, middleware=[guard], exception_handlers=HANDLERS)
    app.state.uploads = page.uploads
    return app


def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=getattr(error, "status", 409))


def _unsaved(_: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    return JSONResponse({"error": f"{disk_problem(error)}; {advice(error, 'try again')}"}, status_code=507)


def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # the visitor has closed the connection and does not see it


HANDLERS = {FashionNTMError: _refused, OSError: _unsaved, ClientDisconnect: _left}


async def body(request: Request, most: int, seconds: float = 60) -> dict[str, Any]:
    """Read a JSON object of at most ``most`` bytes that arrives in ``seconds``. Raises RequestError."""
    data = b""
    with anyio.move_on_after(seconds) as waiting:
        async for part in request.stream():
            data += part
            if len(data) > most:
                raise RequestError(f"a request has at most {most:,} bytes", 413)
    if waiting.cancelled_caught:
        raise RequestError(f"the request did not arrive in {seconds:g} seconds: try again", 408)
    try:
        values = json.loads(data or b"{}")
    except (ValueError, RecursionError):  # an integer of thousands of digits also raises ValueError
        raise RequestError("the request is not JSON that can be read") from None
    if not isinstance(values, dict):
        raise RequestError("the request is no JSON object")
    level: list[Any] = [values]
    for _ in range(DEPTH):
        level = [v for x in level for v in (x.values() if isinstance(x, dict) else x) if isinstance(v, dict | list)]
    if level:
        raise RequestError(f"the request is nested deeper than {DEPTH} levels")
    return values


async def picture(pictures: Pictures, image: str, size: int, why_not: str) -> Response:
    """Return an image of the catalog as a small JPEG. Raises RequestError (404) if it has no readable file."""
    if (data := await run_in_threadpool(pictures.thumbnail, image, size)) is None:
        raise RequestError(why_not, 404)
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


class Uploads:
    """Admission control, so that many large uploads at once cannot exhaust the memory.

    ``held``: bytes of all uploaded files in memory now, at most ``limits.upload_buffer``.
    """

    def __init__(self, limits: Limits):
        self.limits, self.held = limits, 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the uploaded file; its bytes count against the buffer until the block ends.

        Raises RequestError: 413 for a file that is too large, 503 while the buffer is full, 408 for a transfer longer
        than ``limits.upload_seconds``.
        """
        limits, parts, size = self.limits, [], 0
        large = f"the file is larger than {limits.upload_bytes / 1e6:.0f} MB: make it smaller"
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > limits.upload_bytes):
            raise RequestError(large, 413)
        try:
            with anyio.move_on_after(limits.upload_seconds) as waiting:
                async for part in request.stream():
                    size += len(part)
                    self.held += len(part)
                    if size > limits.upload_bytes:
                        raise RequestError(large, 413)
                    if self.held > limits.upload_buffer:
                        raise RequestError("too many images are uploaded at once: try again in a moment", 503)
                    parts.append(part)
            if waiting.cancelled_caught:
                raise RequestError(f"the file did not arrive in {limits.upload_seconds:g} seconds: try again", 408)
            yield b"".join(parts)
        finally:
            self.held -= size

    async def decoded(self, work: Callable[[], T]) -> T:
        """Run ``work``, which decodes and encodes an image, in one of ``limits.decodes`` threads; others wait."""
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    @cached_property
    def _threads(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(self.limits.decodes)


class _Page:
    def __init__(self, engine: Engine, title: str, saved: SavedDialogues | None):
        self.engine, self.title, self.saved, self.uploads = engine, title, saved, Uploads(engine.limits)
        self.said = known_texts(engine.queries, [s for s in engine.dataset.sessions if s.split == "test"])

    async def index(self, _: Request) -> Response:
        return HTMLResponse(render("index.html", title=self.title))

    async def about(self, _: Request) -> Response:
        e = self.engine
        extractor = e.queries.extractor
        starts = "catalogue" if extractor is None else "describe" if extractor.reads == "caption" else "upload"
        models = [{"label": t.label, "title": t.title, "run": t.run, "seed": t.seed} for t in e.trained.values()]
        categories = {name: len(found.images) for name, found in e.galleries.items()}
        found = {"api": API, "title": self.title, "categories": categories, "models": models, "live": e.queries.live}
        found |= {"why_not_live": e.why_not_live, "starts": starts, "saves": self.saved is not None}
        found |= {"texts": [] if e.queries.live else self.said, "limits": e.limits.model_dump()}
        return JSONResponse(found)

    async def images(self, request: Request) -> Response:
        asked = request.query_params
        first = int(asked["first"]) if asked.get("first", "").isdecimal() and len(asked["first"]) < 10 else 0
        words = asked.get("q", "")[: self.engine.limits.text]
        found, total = await run_in_threadpool(self.engine.browse, asked.get("category"), words, first, PAGE)
        return JSONResponse({"images": [self._card(image) for image in found], "total": total, "first": first})

    async def image(self, request: Request) -> Response:
        image = self.engine.image_id(number_of(request.path_params["number"]))
        asked, size = request.query_params.get("w", ""), SIZES[1]
        if asked.isdecimal() and len(asked) < 6:
            size = min((s for s in SIZES if s >= int(asked)), default=SIZES[-1])
        why = "this image has no readable file: its words stand in for it"
        return await picture(self.engine.pictures, image, size, why)

    async def _asked(self, request: Request) -> dict[str, Any]:
        return await body(request, self.engine.limits.body_bytes, self.engine.limits.upload_seconds)

    async def start(self, request: Request) -> Response:
        asked = await self._asked(request)

        def work() -> dict[str, Any]:
            upload = None
            if "description" in asked:
                text = clean_text(asked["description"], self.engine.limits.text)
                upload = (described_row(self.engine.queries, text), None)
            return self._view(self.engine.start(asked.get("category"), asked.get("image"), asked.get("models"), upload))

        return JSONResponse(await run_in_threadpool(work))

    async def upload(self, request: Request) -> Response:
        asked = request.query_params
        models = asked.getlist("model") or None
        async with self.uploads.body(request) as data:

            def work() -> dict[str, Any]:
                found = upload_row(self.engine.queries, data, self.engine.limits)
                return self._view(self.engine.start(asked.get("category"), models=models, upload=found))

            return JSONResponse(await self.uploads.decoded(work))

    async def show(self, request: Request) -> Response:
        talk = self.engine.talk(request.path_params["id"])

        def work() -> dict[str, Any]:
            with talk.lock:
                return self._view(talk)

        return JSONResponse(await run_in_threadpool(work))

    async def start_image(self, request: Request) -> Response:
        if (jpeg := self.engine.talk(request.path_params["id"]).upload_jpeg) is None:
            raise RequestError("this dialogue did not start from an uploaded image", 404)
        return Response(jpeg, media_type="image/jpeg")

    async def export(self, request: Request) -> Response:
        talk = self.engine.talk(request.path_params["id"])
        with talk.lock:
            line = json.dumps(self.engine.session(talk).model_dump(), ensure_ascii=False)
        headers = {"Content-Disposition": 'attachment; filename="sessions.jsonl"'}
        return PlainTextResponse(f"{line}\n", media_type="application/x-ndjson", headers=headers)

    def act(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            asked = await self._asked(request)
            return JSONResponse(await run_in_threadpool(self._do, request.path_params["id"], name, asked))

        return handle

    def _do(self, talk_id: str, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        talk = self.engine.talk(talk_id)
        with talk.lock:
            if name in ACTIONS:
                method, key = ACTIONS[name]
                getattr(self.engine, method)(talk, *([asked.get(key)] if key else []))
            elif self.saved is None:
                raise RequestError("this server saves no dialogues: start it with --save DIR")
            else:
                self.saved.add(self.engine.session(talk), [self.engine.trained[label] for label in talk.models])
            return self._view(talk)

    def _view(self, talk: Talk) -> dict[str, Any]:
        k = min(12, self.engine.limits.results)
        results = self.engine.results(talk, k)
        chosen = talk.chosen or talk.start
        return {
            "id": talk.id,
            "category": talk.category,
            "turns": [{"reference": self._card(s.reference, talk), "text": s.text} for s in talk.steps],
            "chosen": self._card(chosen, talk),
            "models": [
                {"label": label, "results": [{**self._card(image), "score": round(score, 4)} for image, score in found]}
                for label, found in results.items()
            ],
            "exports": len(talk.steps) >= 2 and all(s.reference != UPLOAD for s in talk.steps),
        }

    def _card(self, image: str, talk: Talk | None = None) -> dict[str, Any]:
        if image == UPLOAD:
            assert talk is not None
            source = f"api/dialogues/{talk.id}/start-image" if talk.upload_jpeg else None
            return {"number": None, "words": "your own image" if source else "your description", "src": source}
        pictures, number = self.engine.pictures, self.engine.numbers[image]
        source = f"image/{number}" if pictures.has_pixels(image) else None
        return {"number": number, "id": image, "words": pictures.words(image), "src": source}
