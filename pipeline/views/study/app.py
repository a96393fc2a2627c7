"""Study page: one question at a time, models without names, in a random order per participant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from manifests.errors import FashionNTMError
from manifests.schema import Dataset
from pipeline.views.retrieval.pictures import Pictures
from pipeline.views.serve.app import HANDLERS, body, picture, render
from pipeline.views.serve.guard import Guard
from pipeline.views.serve.limits import RequestError, number_of
from pipeline.views.study.store import StudyError, StudyFile

SIZE = 384
MOST = 4096  # largest size of a request in bytes


def make_study_app(
    study: StudyFile, dataset: Dataset, title: str, token: str | None = None, hosts: tuple[str, ...] = ()
) -> Starlette:
    """Return the application. ``token`` and ``hosts`` as in ``serve.app.make_app``."""
    page = _Study(study, dataset, title)
    ours, theirs = (str(resources.files(name) / "static") for name in ("pipeline.views.study", "pipeline.views.serve"))
    routes = [
        Route("/", page.index),
        *(Route(f"/api/{f.__name__}", page.act(f), methods=["POST"]) for f in (page.join, page.question, page.answer)),
        Route("/image/{place}", page.image),
        Mount("/static/study", StaticFiles(directory=ours)),
        Mount("/static", StaticFiles(directory=theirs)),
    ]

    def refused(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, getattr(error, "status", 400))

    guard, handlers = Middleware(Guard, token=token, hosts=hosts), {**HANDLERS, FashionNTMError: refused}
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)


class _Study:
    def __init__(self, study: StudyFile, dataset: Dataset, title: str):
        self.study, self.title, self.pictures = study, title, Pictures(dataset)
        sessions = {s.id: s for s in dataset.sessions}
        try:
            self.sessions = {q.number: sessions[q.session] for q in study.questions}
        except KeyError as error:
            what = f"session {error} is not in this dataset: name the spec it was made for"
            raise StudyError(f"{study.path}: {what}") from None
        shown = (i for q in study.questions for _, images in q.options for i in images)
        references = (t.reference for s in self.sessions.values() for t in s.turns)
        self.images = sorted({*shown, *references})
        self.places = {image: n for n, image in enumerate(self.images)}

    async def index(self, _: Request) -> Response:
        return HTMLResponse(render("study.html", "pipeline.views.study", title=self.title))

    async def image(self, request: Request) -> Response:
        place = number_of(request.path_params["place"])
        image = self.images[place] if place < len(self.images) else ""
        return await picture(self.pictures, image, SIZE, "there is no picture of this number")

    def act(self, work: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            asked = await body(request, MOST)
            return JSONResponse(await run_in_threadpool(work, asked))

        return handle

    def join(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._next(self.study.join(asked.get("name")))

    def question(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the question at a position of the participant's order, to review or change an answer."""
        name, place = self.study.join(asked.get("name")), asked.get("place")
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(self.study.questions):
            raise RequestError(f"there is no question {place!r}", 404)
        return self._view(name, place)

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        name, seconds = self.study.join(asked.get("name")), asked.get("seconds")
        kept = float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e6 else None
        self.study.answer(name, asked.get("question"), asked.get("option"), kept)
        return self._next(name)

    def _next(self, name: str) -> dict[str, Any]:
        done, order = self.study.answered(name), self.study.order(name)
        place = next((n for n, number in enumerate(order) if number not in done), None)
        if place is None:
            return {"name": name, "total": len(order), "answered": len(done), "question": None}
        return self._view(name, place)

    def _view(self, name: str, place: int) -> dict[str, Any]:
        number = self.study.order(name)[place]
        question, session, done = self.study.questions[number], self.sessions[number], self.study.answered(name)
        order = question.shuffled(self.study.about["seed"], name)
        given = done.get(number)
        return {
            "name": name,
            "total": len(self.study.questions),
            "answered": len(done),
            "place": place,
            "question": {
                "number": number,
                "turns": [{"reference": self._card(t.reference), "text": t.text} for t in session.turns],
                "options": [[self._card(image) for image in question.options[option][1]] for option in order],
                "given": None if number not in done else {"option": None if given is None else order.index(given)},
            },
        }

    def _card(self, image: str) -> dict[str, Any]:
        """Return a picture without its id, so that the page does not reveal the model that retrieved it."""
        source = f"image/{self.places[image]}" if self.pictures.has_pixels(image) else None
        return {"words": self.pictures.words(image), "src": source}
