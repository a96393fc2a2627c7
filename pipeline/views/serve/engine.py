"""Dialogues with trained models over a gallery: start, say, choose, back, permute, compare, export."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from torch import Tensor

from manifests.schema import TURN_JOIN, Session, Turn
from pipeline.evaluation.evaluate import Candidates, load_candidates
from pipeline.extraction.images import ItemError, decode
from pipeline.jobs.experiment import Experiment
from pipeline.training.dialogue import Dialogue
from pipeline.views.retrieval.index import ExactIndex
from pipeline.views.retrieval.pictures import Pictures, small_jpeg
from pipeline.views.retrieval.queries import Queries
from pipeline.views.retrieval.trained import Trained, data_of
from pipeline.views.serve.limits import Limits, RequestError, clean_text

UPLOAD = "(uploaded)"


@dataclass
class Step:
    """One turn of a dialogue. ``reference`` is an image id, or ``UPLOAD`` for the dialogue's own start image."""

    reference: str
    text: str


@dataclass
class Talk:
    """One user's dialogue. ``models``: label -> running state; all models have received the same turns."""

    id: str
    category: str
    start: str
    upload: Any = None  # feature row of an uploaded start image
    upload_jpeg: bytes | None = None
    steps: list[Step] = field(default_factory=list)
    chosen: str | None = None  # the next turn's reference
    models: dict[str, Dialogue] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)


class Engine:
    """Dialogue engine of the page. Methods are thread-safe; each dialogue handles one request at a time."""

    def __init__(
        self, experiment: Experiment, queries: Queries, trained: Sequence[Trained], limits: Limits, why_not_live: str
    ):
        self.dataset, self.queries, self.limits, self.why_not_live = experiment.dataset, queries, limits, why_not_live
        self.trained, dataset, store = {t.label: t for t in trained}, experiment.dataset, experiment.store
        self.pictures = Pictures(dataset)
        galleries = [g for g in dataset.galleries if g.split == "test"] or list(dataset.galleries)
        loaded: dict[str, Candidates] = load_candidates(store, galleries)
        self.galleries = {name: found for name, found in loaded.items() if found.images}
        self.indexes = {name: ExactIndex(found.features, experiment.device) for name, found in self.galleries.items()}
        self.made_with = data_of(store, self.galleries, dataset.split("train"))
        self.numbers = {image: n for n, image in enumerate(dataset.images)}
        self.ids = list(dataset.images)
        self._talks: OrderedDict[str, Talk] = OrderedDict()
        self._lock = Lock()

    def start(self, category: object, image: object = None, models: object = None, upload: Any = None) -> Talk:
        """Start a dialogue from a catalog image, or from an upload (feature row, JPEG for the page)."""
        gallery = self._gallery(category)
        start = UPLOAD if upload is not None else self.image_id(image)
        if upload is None and not self.queries.knows(start):
            raise RequestError(f"image {start!r} has no feature to start from: choose another")
        row, jpeg = upload if upload is not None else (None, None)
        talk = Talk(secrets.token_urlsafe(12), gallery, start, row, jpeg, chosen=start)
        talk.models = {t.label: Dialogue(t.model, t.run) for t in self._wanted(models)}
        with self._lock:
            self._talks[talk.id] = talk
            while len(self._talks) > self.limits.dialogues:
                self._talks.popitem(last=False)
        return talk

    def talk(self, name: str) -> Talk:
        with self._lock:
            if (talk := self._talks.get(name)) is None:
                raise RequestError("this dialogue is no longer remembered: start a new one", 404)
            self._talks.move_to_end(name)
            return talk

    def say(self, talk: Talk, text: object) -> None:
        """Add a turn from the chosen image. If any model fails, the dialogue does not change."""
        said = clean_text(text, self.limits.text)
        if len(talk.steps) >= self.limits.turns:
            raise RequestError(f"a dialogue has at most {self.limits.turns} turns: go back, or start a new one")
        assert talk.chosen is not None
        steps = [*talk.steps, Step(talk.chosen, said)]
        queries = self._queries(talk, steps)
        for dialogue in talk.models.values():
            dialogue.say(queries[_kind(dialogue)], said)
        talk.steps = steps
        talk.chosen = self._best(talk, steps)

    def choose(self, talk: Talk, image: object) -> None:
        chosen = self.image_id(image)
        if not self.queries.knows(chosen):
            raise RequestError(f"image {chosen!r} has no feature to continue from: choose another")
        talk.chosen = chosen

    def back(self, talk: Talk) -> None:
        if not talk.steps:
            raise RequestError("this is the start of the dialogue: there is no turn to take back")
        for dialogue in talk.models.values():
            dialogue.back()
        talk.chosen = talk.steps.pop().reference

    def permute(self, talk: Talk, order: object) -> None:
        """Replay the same turns from the start in another order (numbers from 0)."""
        if not isinstance(order, list) or sorted(map(str, order)) != sorted(map(str, range(len(talk.steps)))):
            raise RequestError(f"an order names each of the {len(talk.steps)} turns once")
        steps = [talk.steps[int(n)] for n in order]
        self._replay(talk, steps, list(talk.models))

    def compare(self, talk: Talk, models: object) -> None:
        """Show the answers of one or two models; a model new to the dialogue receives all turns from the start."""
        self._replay(talk, talk.steps, [t.label for t in self._wanted(models)])

    def _replay(self, talk: Talk, steps: list[Step], labels: Sequence[str]) -> None:
        dialogues = {label: Dialogue(self.trained[label].model, self.trained[label].run) for label in labels}
        for turn in range(len(steps)):
            queries = self._queries(talk, steps[: turn + 1], dialogues)
            for dialogue in dialogues.values():
                dialogue.say(queries[_kind(dialogue)], steps[turn].text)
        same = steps is talk.steps
        talk.models, talk.steps = dialogues, steps
        if steps and not same:
            talk.chosen = self._best(talk, steps)

    def _queries(
        self, talk: Talk, steps: Sequence[Step], dialogues: dict[str, Dialogue] | None = None
    ) -> dict[tuple[str, bool], Tensor]:
        """Return the input of each kind of model at the last of ``steps``: its own query, or all captions as one."""
        found = {}
        for kind in {_kind(d) for d in (dialogues or talk.models).values()}:
            reads, texts = kind
            whole = Step(steps[0].reference, TURN_JOIN.join(step.text for step in steps))
            step = whole if reads == "concatenated" else steps[-1]
            image = talk.upload if step.reference == UPLOAD else step.reference
            found[kind] = self.queries.query(image, step.text, texts)
        device = self.indexes[talk.category].features.device
        return {kind: value.to(device) for kind, value in found.items()}

    def _best(self, talk: Talk, steps: Sequence[Step]) -> str:
        """Return the first model's best result that was not yet a reference: the user's most likely next choice."""
        used = {step.reference for step in steps}
        images = self.results(talk, len(used) + 1)[next(iter(talk.models))]
        return next((image for image, _ in images if image not in used), steps[-1].reference)

    def results(self, talk: Talk, k: int) -> dict[str, list[tuple[str, float]]]:
        """Return model label -> list of (image id, cosine), best first; empty before the first turn."""
        gallery, index = self.galleries[talk.category], self.indexes[talk.category]
        found: dict[str, list[tuple[str, float]]] = {label: [] for label in talk.models}
        for label, dialogue in talk.models.items():
            if dialogue.current is not None:
                hits = index.search(dialogue.current, k)
                pairs = zip(hits.rows[0].tolist(), hits.scores[0].tolist(), strict=True)
                found[label] = [(gallery.images[row], score) for row, score in pairs]
        return found

    def image_id(self, number: object) -> str:
        """Return the image id of a catalog number. Requests name images by number only, so paths cannot be traversed."""
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self.ids):
            raise RequestError(f"no catalog image has number {number!r}", 404)
        return self.ids[number]

    def browse(self, category: object, words: str, first: int, count: int) -> tuple[list[str], int]:
        """Return one page of the gallery images whose id or words contain all ``words``, and their total number."""
        wanted = words.lower().split()[:20]
        images = self.galleries[self._gallery(category)].images
        if wanted:
            images = tuple(i for i in images if all(w in f"{i} {self.pictures.words(i)}".lower() for w in wanted))
        first = max(0, first)
        return list(images[first : first + count]), len(images)

    def _gallery(self, category: object) -> str:
        if not isinstance(category, str) or category not in self.galleries:
            raise RequestError(f"no category {category!r}: there are {', '.join(self.galleries)}")
        return category

    def _wanted(self, models: object) -> list[Trained]:
        listed = [next(iter(self.trained))] if models is None else models if isinstance(models, list) else []
        names = [name for name in listed if isinstance(name, str)]
        if len(names) != len(listed) or not 1 <= len(names) <= self.limits.models:
            raise RequestError(f"name one model, or {self.limits.models} to compare")
        unknown = [name for name in names if name not in self.trained]
        if unknown or len(set(names)) < len(names):
            raise RequestError(f"models {names}: name different ones of {', '.join(self.trained)}")
        return [self.trained[name] for name in names]

    def session(self, talk: Talk) -> Session:
        """Return the dialogue as a test session; its target is the currently chosen image."""
        if any(step.reference == UPLOAD for step in talk.steps):
            raise RequestError("a dialogue from an uploaded image has no catalog image to name: it cannot be exported")
        if len(talk.steps) < 2:
            raise RequestError("a session has two turns or more: say one more thing before you export it")
        turns = tuple(Turn(reference=step.reference, captions=(step.text,)) for step in talk.steps)
        assert talk.chosen is not None
        return Session(id=f"dialogue-{talk.id}", category=talk.category, split="test", turns=turns, target=talk.chosen)


def _kind(dialogue: Dialogue) -> tuple[str, bool]:
    """Return the model's input at a turn: which query, and whether the text's row is appended."""
    return dialogue.model.reads, dialogue.model.texts > 0


def upload_row(queries: Queries, data: bytes, limits: Limits) -> tuple[np.ndarray | Any, bytes]:
    """Return an uploaded file as (feature row, JPEG for the page). Raises RequestError, naming the exceeded limit."""
    if (extractor := queries.extractor) is None:
        raise RequestError("no extractor is loaded, so a new image has no feature: choose a catalog image")
    if extractor.reads == "caption":
        raise RequestError("captions stand for the images here: describe the image instead of uploading it")
    if len(data) > limits.upload_bytes:
        raise RequestError(f"the file is larger than {limits.upload_bytes / 1e6:.0f} MB: make it smaller", 413)
    try:
        picture = decode(data, limits.upload_pixels)
    except ItemError as error:
        raise RequestError(f"the file is no image that can be used: {error}") from None
    needed, (width, height) = extractor.prepared_pixels(*picture.size), picture.size
    if needed > limits.upload_pixels:
        what = f"would be prepared as {needed:,} pixels, limit {limits.upload_pixels:,}"
        raise RequestError(f"the image of {width}x{height} {what}: crop it", 413)
    return queries.upload(picture), small_jpeg(picture.copy(), 256)


def described_row(queries: Queries, text: str) -> Any:
    """Return the row of a description, the start of a caption gallery. Raises RequestError if images have pixels."""
    if queries.extractor is None or queries.extractor.reads != "caption":
        raise RequestError("a description can stand for the first image only in a caption gallery with its encoder")
    return queries.upload(text)
