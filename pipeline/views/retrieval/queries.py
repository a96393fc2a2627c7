"""Live queries: (reference, feedback) -> f_qry, from cached rows if present, otherwise from the rows' extractor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache import Store
from cache.layout import canonical
from manifests.errors import FashionNTMError, IncompleteError
from manifests.identity import changed_fields, pair_key, stack_keys, text_key
from manifests.schema import Component, Dataset, RunSpec, Session
from pipeline.composition.compose import composed_fields
from pipeline.composition.composers.base import Composer
from pipeline.composition.ready import ready_composer
from pipeline.composition.request import composer_request, is_joint
from pipeline.core.workspace import Workspace
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.fitting.job import fitted_spec
from pipeline.extraction.images import decode, read
from pipeline.jobs.experiment import Experiment

TEXTS_KEPT = 10_000  # rows of encoded texts in memory


class QueryError(IncompleteError, ValueError):
    """A query that cannot be computed: an uncached text without an extractor, or an image without features."""


class Queries:
    """Compute f_qry of any catalog image and any text. An uncached text is encoded once, a cached one never.

    ``extractor``: the store's (``live.store_extractor``), or None to use cached rows only. Thread-safe: the extractor
    runs in one thread at a time.
    """

    def __init__(self, spec: RunSpec, dataset: Dataset, workspace: Workspace, extractor: Extractor | None = None):
        self.dataset, self.extractor = dataset, extractor
        self.backbone: Store = workspace.backbone(spec, dataset)
        self.composer = store_composer(spec, dataset, workspace)
        self._bound = self.backbone.catalogue()
        self._texts: dict[str, np.ndarray] = {}
        self._lock = Lock()

    @property
    def live(self) -> bool:
        """Whether an uncached text can be encoded."""
        return self.extractor is not None

    def knows(self, image: str) -> bool:
        """Return whether the image has a feature to start from."""
        table = "image" if self.composer is not None else "target"
        key = self._bound.get(image)
        return key is not None and self._row(table, key) is not None

    def query(self, image: str | np.ndarray, text: str, texts: bool = False) -> Tensor:
        """Return f_qry [D] of an image, given as a catalog id or an uploaded image's row (``upload``), and a text.

        ``texts``: return [D + E], with the text's own row appended, for a model that reads ``texts``. Raises
        QueryError, naming the missing row and the way to supply it.
        """
        if texts:
            return torch.cat([self.query(image, text), torch.from_numpy(self.text_row(text))])
        if self.composer is None:
            return self._joint(image, text)
        row = self.image_row(image) if isinstance(image, str) else image
        pair = torch.from_numpy(np.stack([row]).astype(np.float32)), torch.from_numpy(self.text_row(text)[None])
        with torch.inference_mode():
            return self.composer.query(*pair)[0].clone()

    def image_row(self, image: str) -> np.ndarray:
        """Return the backbone's row of a catalog image, float32 [D]."""
        key = self._bound.get(image)
        row = None if key is None else self._row("image", key)
        if row is None:
            raise QueryError(f"image {image!r} has no feature in {self.backbone.path.name}: extract it first")
        return row

    def text_row(self, text: str) -> np.ndarray:
        """Return the backbone's row of a text, float32 [D]: cached, or encoded now."""
        text = " ".join(text.split())
        if (row := self._texts.get(text)) is None:
            row = self._row("text", text_key(text))
        if row is None:
            row = self._encode(text, lambda extractor: extractor.encode_texts([text])[0])
            if len(self._texts) >= TEXTS_KEPT:
                self._texts.pop(next(iter(self._texts)))
            self._texts[text] = row
        return row

    def upload(self, picture: Any) -> np.ndarray:
        """Return the row of an image outside the catalog: an RGB Pillow image, or a caption for a caption gallery."""
        if self.composer is None and self.extractor is not None:
            # a joint model reads it together with the text; the prepared image is small and kept for the dialogue
            return picture if self.extractor.reads == "caption" else self.extractor.prepare(picture)
        return self._encode("the uploaded image", lambda extractor: extractor.encode_images([picture])[0])

    def words(self, text: str) -> Tensor:
        """Return the query [D] of a text alone. Raises QueryError where texts and images share no space."""
        if self.composer is not None:
            with torch.inference_mode():
                found = self.composer.words(torch.from_numpy(self.text_row(text)[None]))
            if found is not None:
                return found[0].clone()
        raise QueryError("this model has no query of a text alone: give an image to start from too")

    def target(self, image: str | np.ndarray) -> Tensor:
        """Return f_tar [D] of an image, given as in ``query``: the query for similar images."""
        if self.composer is None:
            raise QueryError("a joint model has no query of an image alone: give a text too")
        row = self.image_row(image) if isinstance(image, str) else image
        with torch.inference_mode():
            return self.composer.target(torch.from_numpy(row.astype(np.float32)[None]))[0].clone()

    def _joint(self, image: Any, text: str) -> Tensor:
        text = " ".join(text.split())
        key = self._bound.get(image) if isinstance(image, str) else None
        row = None if key is None else self._row("query", pair_key(key, text_key(text)))
        if row is None:
            source = self._source(image) if isinstance(image, str) else image
            row = self._encode(text, lambda extractor: extractor.encode_pairs([source], [text])[0])
        return torch.from_numpy(row)

    def _source(self, image: str) -> Any:
        """Return a catalog image as the joint model reads it."""
        record = self.dataset.images[image]
        if self.extractor is not None and self.extractor.reads == "caption":
            return self.extractor.standin(record, self.dataset)
        if record.file is None or self.dataset.images_root is None:
            raise QueryError(f"image {image!r} has no file: a joint model needs its pixels for a new text")
        data = read(self.dataset.images_root.resolve(), record.file)
        return decode(data) if self.extractor is None else self.extractor.prepare_file(data)

    def _row(self, table: str, key: bytes) -> np.ndarray | None:
        if table not in self.backbone.tables:
            return None
        found = self.backbone.find(table, stack_keys([key]))
        return None if found[0] < 0 else self.backbone.gather(table, found)[0].astype(np.float32)

    def _encode(self, what: str, call: Callable[[Extractor], np.ndarray]) -> np.ndarray:
        if self.extractor is None:
            problem = f"{what!r} is not cached and no extractor is loaded: type a text that the dataset knows, or start"
            raise QueryError(f"{problem} without --cached-only where the extractor's model can be loaded")
        with self._lock:
            row = call(self.extractor).astype(np.float32)
        if not np.isfinite(row).all():
            raise FashionNTMError(f"the extractor gave NaN or infinite values for {what!r}: check its weights")
        return row


def known_texts(queries: Queries, sessions: Sequence[Session]) -> list[str]:
    """Return up to 200 distinct feedback texts of ``sessions`` that have a row and thus need no extractor."""
    texts = list(dict.fromkeys(turn.text for session in sessions for turn in session.turns))[:800]
    if not texts or "text" not in queries.backbone.tables:
        return texts[:200] if "query" in queries.backbone.tables else []
    rows = queries.backbone.find("text", stack_keys(text_key(text) for text in texts))
    return [text for text, row in zip(texts, rows, strict=True) if row >= 0][:200]


def store_extractor(experiment: Experiment) -> Extractor:
    """Load the extractor of the backbone rows, with its fitted weights if any, in the rows' precision.

    Raises IncompleteError if its semantic fields differ from the store's, naming them old -> new and the command to
    run, or if it is not fitted yet; and the errors of ``load_extractor``.
    """
    about = spec, dataset, workspace = experiment.spec, experiment.dataset, experiment.workspace
    backbone, chosen = workspace.backbone(spec, dataset), fitted_spec(*about)
    if "compute_dtype" in backbone.fields:  # set by ``extract --precision``, not by a spec
        options = {**chosen.extractor.options, "dtype": backbone.fields["compute_dtype"]}
        chosen = chosen.model_copy(update={"extractor": Component(name=chosen.extractor.name, **options)})
    extractor = load_extractor(chosen, str(experiment.device))
    _same(backbone.fields, canonical(extractor.semantic()), f"extractor '{spec.extractor.name}'", backbone, spec)
    return extractor


def store_composer(spec: RunSpec, dataset: Dataset, workspace: Workspace) -> Composer | None:
    """Load the composer of the spec's query rows, in eval mode; None for a joint model, which needs none.

    For a cross-fitted store this is the head fitted on all train sessions. Raises IncompleteError if weights, options
    or backbone differ from the store's fields.
    """
    backbone, store, request = workspace.backbone(spec, dataset), workspace.store(spec, dataset), composer_request(spec)
    if is_joint(backbone):
        return None
    ready, command = ready_composer(request, spec, dataset, backbone, folds=False), "extract"
    if request.kind.trainable:
        command = "fit-composer"
    if ready is None:
        what = f"the fitted composer of spec '{spec.name}' is missing or damaged"
        raise IncompleteError(f"{what}: run `{spec.command('fit-composer')}`")
    stored = {k: v for k, v in store.fields["composer"].items() if k != "folds"}
    found = canonical(composed_fields(backbone, ready.composer, ready.weights))
    _same(store.fields | {"composer": stored}, found, f"composer '{request.name}'", store, spec, command)
    return ready.composer


def _same(
    stored: dict[str, Any], found: dict[str, Any], what: str, store: Store, spec: RunSpec, command: str = "extract"
) -> None:
    if changed := changed_fields(stored, found):
        since = f"changed since it made {store.path.name} ({'; '.join(changed)})"
        raise IncompleteError(f"{what} of spec '{spec.name}' {since}: run `{spec.command(command)}`")
