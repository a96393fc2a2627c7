"""Dialogues with a trained run over a gallery: open a spec or a run, start from an image, say, go back, save."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
from torch import Tensor

from cache.files import replace_atomically
from manifests.archives import MAX_BYTES
from manifests.errors import FashionNTMError, ManifestError, Problem, nearest
from manifests.identity import changed_fields
from manifests.load import load_dataset, load_spec, recorded_spec
from manifests.schema import TURN_JOIN, RunSpec
from manifests.text import read_bounded
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.managed_runs import run_named
from pipeline.jobs.specs import check_components
from pipeline.training.runs import RunFolder, list_runs
from pipeline.views.retrieval.trained import DIGITS, models_of
from pipeline.views.serve.engine import UPLOAD, Step, Talk, described_row, upload_row
from pipeline.views.serve.engine import Engine as Talks
from pipeline.views.serve.limits import clean_text
from pipeline.views.serve.run import open_engine

FORMAT = 1
StartImage: TypeAlias = str | Path | PIL.Image.Image | None  # an id of the catalog, a file or a picture


class Hit(NamedTuple):
    """A result. ``id``: image id; ``score``: cosine of query and candidate."""

    id: str
    score: float


class Engine:
    """Search over the galleries of a spec with its trained runs. Thread-safe, as the page of `serve`."""

    def __init__(self, talks: Talks):
        self.talks = talks

    @classmethod
    def open(
        cls,
        spec: str | Path | RunSpec,
        data: str | Path = "data",
        out: str | Path = "out",
        *,
        runs: Sequence[str] = (),
        overrides: Sequence[str] = (),
        device: str = "auto",
        cached_only: bool = False,
        log: Callable[[str], None] = lambda _: None,
    ) -> Engine:
        """Open a spec (shipped name, .toml file or ``RunSpec``), or one run (its folder, or its id in ``out``).

        ``runs``: only these runs of the spec. ``cached_only``: load no extractor, so only cached texts can be said.
        Raises ManifestError, and IncompleteError with the next command.
        """
        folder = None if isinstance(spec, RunSpec) else _run_folder(str(spec), Path(out))
        if folder is not None:
            recorded, runs, out = folder.record().get("spec"), [folder.id], folder.path.resolve().parents[3]
            job = recorded_spec(recorded)
        else:
            job = spec if isinstance(spec, RunSpec) else load_spec(str(spec), overrides)
        check_components(job)
        dataset, workspace = load_dataset(job, Path(data)), Workspace(Path(out))
        return cls(open_engine(Experiment(job, dataset, workspace, device, log), runs, cached_only))

    @property
    def models(self) -> list[str]:
        """Return the labels of the runs; the first one answers by default."""
        return list(self.talks.trained)

    @property
    def galleries(self) -> dict[str, int]:
        """Return gallery -> number of searchable images."""
        return {name: len(found.images) for name, found in self.talks.galleries.items()}

    def ids(self, gallery: str | None = None) -> tuple[str, ...]:
        """Return the searchable image ids of a gallery, the first by default."""
        return self.talks.galleries[self.gallery(gallery)].images

    def gallery(self, name: str | None = None) -> str:
        """Return the name of a gallery, the first by default. Raises ManifestError for an unknown one."""
        if not self.talks.galleries:
            raise FashionNTMError("no gallery has an image with features: run `index` or `extract` first")
        if name is not None and name not in self.talks.galleries:
            raise ManifestError([Problem("gallery", name, "no such gallery", nearest(name, self.talks.galleries))])
        return next(iter(self.talks.galleries)) if name is None else name

    def start(
        self, image: StartImage = None, gallery: str | None = None, model: str | None = None, description: str = ""
    ) -> Dialogue:
        """Start a dialogue from an image: a catalog id, a file, or a Pillow image.

        ``description``: words in place of the image, in a gallery of captions. ``gallery``: the first by default.
        Raises RequestError, and IncompleteError when an image outside the catalog needs an extractor.
        """
        upload = self._upload(image, description)
        number = None if upload is not None else self._number(image)
        chosen = self.gallery(gallery)
        return Dialogue(self, self.talks.start(chosen, number, None if model is None else [model], upload))

    def similar(self, image: StartImage, k: int = 10, gallery: str | None = None) -> list[Hit]:
        """Return the ``k`` images nearest to an image, given as in ``start``."""
        upload = self._upload(image, "")
        source = upload[0] if upload is not None else self.talks.image_id(self._number(image))
        return self._search(self.talks.queries.target(source), k, gallery)

    def find(self, text: str, k: int = 10, gallery: str | None = None) -> list[Hit]:
        """Return the ``k`` best images for a text alone, where texts and images share a space."""
        return self._search(self.talks.queries.words(clean_text(text, self.talks.limits.text)), k, gallery)

    def search(
        self,
        image: StartImage = None,
        texts: Sequence[str] = (),
        k: int = 10,
        gallery: str | None = None,
        model: str | None = None,
    ) -> list[Hit]:
        """Return the ``k`` best images: of a dialogue from ``image``, of the image alone, or of the texts alone."""
        if image is None:
            return self.find(TURN_JOIN.join(texts), k, gallery)
        if not texts:
            return self.similar(image, k, gallery)
        dialogue = self.start(image, gallery, model)
        for text in texts:
            dialogue.say(text, k)
        return dialogue.results(k)

    def resume(self, path: str | Path) -> Dialogue:
        """Continue a dialogue saved by ``Dialogue.save``. Raises FashionNTMError if it is of other features or weights."""
        try:
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            if saved["format"] != FORMAT:
                raise ValueError(f"format {saved['format']!r}")
            labels = [m["label"] for m in saved["made_with"]["models"]]
            if changed := "; ".join(changed_fields(saved["made_with"], self._identity(labels))):
                raise FashionNTMError(f"{path}: the dialogue is of other features or runs ({changed}): start a new one")
            row = saved["upload"]
            if isinstance(row, list):
                row = np.asarray(row, dtype=np.float32)
            start, upload = (self._number(saved["start"]), None) if row is None else (None, (row, None))
            talk = self.talks.start(saved["gallery"], start, labels, upload)
            for reference, text in saved["steps"]:
                talk.chosen = str(reference)
                self.talks.say(talk, text)
            talk.chosen = str(saved["chosen"])
        except FashionNTMError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FashionNTMError(f"{path}: not a saved dialogue ({error}): start a new one") from error
        return Dialogue(self, talk)

    def _identity(self, labels: Sequence[str]) -> dict[str, Any]:
        known = [self.talks.trained[label] for label in labels if label in self.talks.trained]
        return {**self.talks.made_with, "models": models_of(known)}

    def _upload(self, image: StartImage, description: str) -> tuple[Any, Any] | None:
        """Return (feature row, JPEG) of an image outside the catalog, or None for a catalog id."""
        talks = self.talks
        if description:
            return described_row(talks.queries, clean_text(description, talks.limits.text)), None
        if isinstance(image, str | Path) and (str(image) in talks.numbers or not Path(image).is_file()):
            return None
        if isinstance(image, str | Path):
            return upload_row(talks.queries, read_bounded(Path(image), MAX_BYTES), talks.limits)
        if image is None:
            raise FashionNTMError("give an image to start from: a catalog id, a file or a Pillow image")
        out = io.BytesIO()
        image.convert("RGB").save(out, "PNG")
        return upload_row(talks.queries, out.getvalue(), talks.limits)

    def _number(self, image: StartImage) -> int:
        if str(image) not in self.talks.numbers:
            hint = nearest(str(image), list(self.talks.numbers)[:20])
            raise ManifestError([Problem("image", str(image), "neither a catalog id nor a file", hint)])
        return self.talks.numbers[str(image)]

    def _search(self, query: Tensor, k: int, gallery: str | None) -> list[Hit]:
        name = self.gallery(gallery)
        index, images = self.talks.indexes[name], self.talks.galleries[name].images
        hits = index.search(query.to(index.features.device), k)
        pairs = zip(hits.rows[0].tolist(), hits.scores[0].tolist(), strict=True)
        return [Hit(images[row], score) for row, score in pairs]


class Dialogue:
    """One dialogue. Every turn starts from ``reference``: the start image, then the best result, or ``choose``."""

    def __init__(self, engine: Engine, talk: Talk):
        self.engine, self._talk = engine, talk

    @property
    def reference(self) -> str:
        """Return the image id that the next turn starts from; "(uploaded)" for the caller's own image."""
        return self._talk.chosen or self._talk.start

    @property
    def start_jpeg(self) -> bytes | None:
        """Return a small JPEG of a start image outside the catalog, else None."""
        return self._talk.upload_jpeg

    @property
    def turns(self) -> list[Step]:
        """Return the turns so far, with ``reference`` and ``text``."""
        return list(self._talk.steps)

    def say(self, text: str, k: int = 10) -> list[Hit]:
        """Add a turn and return the ``k`` best images. Raises RequestError; the dialogue is then unchanged."""
        with self._talk.lock:
            self.engine.talks.say(self._talk, text)
        return self.results(k)

    def choose(self, image: str) -> None:
        with self._talk.lock:
            self.engine.talks.choose(self._talk, self.engine._number(image))

    def back(self, k: int = 10) -> list[Hit]:
        """Undo the last turn and return the results before it; none at the start."""
        with self._talk.lock:
            self.engine.talks.back(self._talk)
        return self.results(k)

    def results(self, k: int = 10) -> list[Hit]:
        """Return the ``k`` best images after the last turn; none before the first."""
        found = self.engine.talks.results(self._talk, k)
        return [Hit(image, score) for image, score in next(iter(found.values()))]

    def save(self, path: str | Path) -> None:
        """Write the dialogue as JSON, atomically, for ``Engine.resume``. Raises FashionNTMError for a joint model's upload."""
        talk = self._talk
        row = talk.upload.tolist() if isinstance(talk.upload, np.ndarray) else talk.upload
        if talk.start == UPLOAD and not isinstance(row, list | str):
            raise FashionNTMError("a joint model's own start image is not saved: start from a catalog image")
        saved = {"format": FORMAT, "made_with": self.engine._identity(list(talk.models)), "gallery": talk.category}
        saved |= {"start": talk.start, "upload": row, "chosen": self.reference}
        saved["steps"] = [[step.reference, step.text] for step in talk.steps]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(Path(path), (json.dumps(saved, ensure_ascii=False) + "\n").encode())


def _run_folder(given: str, out: Path) -> RunFolder | None:
    """Return the run that ``given`` names by folder or id, or None if it is no run."""
    digits = len(given) >= DIGITS and not set(given) - set("0123456789abcdef")
    known = digits and any(folder.id.startswith(given) for folder in list_runs(out / "runs"))
    return run_named(given, out / "runs") if known or (Path(given) / "run.json").is_file() else None
