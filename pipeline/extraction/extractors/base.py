"""Base class of the single-turn models (stage 1): items in, checked feature rows and fingerprint fields out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image as Pillow

from manifests.errors import FashionNTMError
from manifests.schema import Dataset, Frozen, Image
from pipeline.extraction import hub
from pipeline.extraction.images import MAX_PIXELS, DecodeError, decode
from pipeline.extraction.tokens import Tokens
from pipeline.extraction.transfer import PendingRows, stack

Prepared: TypeAlias = Any  # result of ``prepare`` for one item: an array, or a dict of arrays
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ExtractorError(FashionNTMError):
    """An extractor violated its contract: wrong shape, wrong number of rows, or an unknown table."""


@dataclass(frozen=True)
class Card:
    """Provenance of a model. ``contaminated_on``: datasets whose test pairs may be in its training data.

    ``source``: hub id, folder, or command that creates it. ``name``: short name of a published checkpoint. ``dims``:
    published D by table. ``clean``: text cleaning before tokenization, "" for none. ``published``: protocol of
    ``check-extractor`` (such as "fashioniq, original protocol") -> metric -> published overall value in percent.
    """

    licence: str
    source: str
    contaminated_on: tuple[str, ...] = ()
    notes: str = ""
    name: str = ""
    dims: Mapping[str, int] = field(default_factory=dict)
    clean: str = ""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that ``ls extractors --long`` prints."""
        dims = ", ".join(f"{table} {d}" for table, d in self.dims.items())
        trained = {"trained on FashionIQ triplets": "yes" if "mt_fashioniq" in self.contaminated_on else "no"}
        about = {"name": self.name, "source": self.source, "licence": self.licence, "dims": dims}
        return about | trained | {"notes": self.notes}


class ExtractorOptions(Frozen):
    """Options common to all extractors. ``contaminated_on``: the user's declaration for their own model."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # dtype of the model's computation
    store_dtype: Literal["float16", "float32"] = "float16"
    normalise: bool = True  # rows of unit L2 norm
    contaminated_on: tuple[str, ...] = ()


class Extractor(ABC):
    """A family of frozen single-turn models. Each module defines exactly one.

    ``tables``: ("image", "text") for a dual encoder, ("query", "target") for a joint model.
    ``reads``: the input for an image, its "pixels" or its "caption".

    ``prepare`` and ``prepare_texts`` run in worker threads, the ``encode_*`` methods in one thread, on ``device``.
    A row depends only on its own item, up to rounding, regardless of the rest of the batch.
    """

    title: ClassVar[str]
    version: ClassVar[int] = 1  # increment when a code change alters features
    Options: ClassVar[type[ExtractorOptions]] = ExtractorOptions
    tables: ClassVar[tuple[str, ...]] = ("image", "text")
    reads: ClassVar[Literal["pixels", "caption"]] = "pixels"
    stacks: ClassVar[bool] = False  # image features accept stacked batches (transfer.to_device)
    reads_dialogs: ClassVar[bool] = False  # table "query" also takes a list of images with ``prepare_dialog``
    cards: ClassVar[tuple[Card, ...]] = ()  # known published checkpoints
    fittable: ClassVar[bool] = False  # can be trained by ``fit-extractor``; see ``_fittable.Fittable``
    execution_only: ClassVar[tuple[str, ...]] = ()  # options that do not change features
    stated: ClassVar[tuple[str, ...]] = ()  # options that ``semantic`` replaces, e.g. a path by a digest
    images_per_job: int = 8  # of a decoding process: few, to keep the prefetch window small
    jpeg_decoder: str = ""  # decoder that all sessions of a store must share, if there is a choice
    card: Card
    checkpoint: hub.Checkpoint  # of a model loaded from one
    tokens: Tokens | None = None  # of a text tower

    def __init__(self, options: ExtractorOptions, device: torch.device):
        self.options, self.device = options, device
        self.compute = _DTYPES[options.dtype]
        self.calls = 0  # items encoded so far
        # Content key of an image -> remark on its decoding, until the runner takes it.
        self.noted: dict[bytes, str] = {}

    @property
    def name(self) -> str:
        """Module name, as in ``[extractor] name = ...``."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the stored features."""
        return np.dtype(self.options.store_dtype)

    @property
    def cut(self) -> int:
        """Number of texts truncated to the maximum length so far."""
        return 0 if self.tokens is None else self.tokens.cut

    @abstractmethod
    def dim(self, table: str) -> int:
        """Return the feature dimension D of ``table`` without running the model."""

    def semantic(self) -> dict[str, Any]:
        """Return the fields that can change a feature value, and no others (no path, batch size or device).

        Field "options" contains the subclass's options, defaults included, except those in ``execution_only`` or
        ``stated``; it is absent if there are none. Subclasses add their fields to the returned ones.
        """
        own = set(type(self.options).model_fields)
        own -= {*ExtractorOptions.model_fields, *self.execution_only, *self.stated}
        dtypes = {"compute_dtype": self.options.dtype, "store_dtype": self.options.store_dtype}
        fields = {"extractor": self.name, "version": self.version, **dtypes, "normalise": self.options.normalise}
        return fields | ({"options": self.options.model_dump(mode="json", include=own)} if own else {})

    def _of_checkpoint(self) -> dict[str, Any]:
        """Return the semantic fields of a model that was loaded from ``checkpoint`` and reads ``tokens``."""
        assert self.tokens is not None
        return {
            "weights": self._weights,
            "config": hub.config_digest(self.checkpoint),
            "tokenizer": self.tokens.semantic(),
            "transformers": version("transformers").split(".")[0],
        }

    @cached_property
    def _weights(self) -> str:
        return hub.weights_digest(self.checkpoint)

    def image_tower(self) -> torch.nn.Module | None:
        """Return the module that takes ``pixel_values`` if ``precision.take_form`` may change its format, else None."""
        return None

    def standin(self, image: Image, dataset: Dataset) -> str | None:
        """Return the text encoded instead of the pixels (``reads = "caption"``); None or blank if there is none."""
        return image.caption

    def exact(self) -> Extractor | None:
        """Return the same model with the exact decode (Pillow's), None if this has it."""
        return None

    def require(self) -> None:  # noqa: B027 - most extractors need nothing
        """Raise ExtractorError, naming the extra, if this machine lacks what reading images needs."""

    # ---- worker threads and processes

    def prepare_file(self, data: bytes) -> Prepared:
        """Decode and preprocess the bytes of an image file. Thread-safe. Raises DecodeError."""
        image = decode(data)
        self.check_size(*image.size)
        return self.prepare(image)

    def check_size(self, width: int, height: int) -> None:
        """Raise DecodeError if the resize would need more pixels than any image may have (20,000 x 1)."""
        if (needed := self.prepared_pixels(width, height)) > MAX_PIXELS:
            what = f"the image of {width}x{height} would be resized to {needed:,} pixels"
            raise DecodeError(f"{what}, limit {MAX_PIXELS:,}: crop it")

    def decode_ahead(self, prepared: Sequence[Prepared]) -> list[Prepared]:
        """Finish what ``prepare_file`` left to the device, in the batches' thread; an image may become a DecodeError."""
        return list(prepared)

    def stack(self, parts: Sequence[Prepared]) -> Sequence[Prepared]:
        """Stack a batch's parts of equal shape and, for a GPU, start copying them; in the batches' thread."""
        return stack(parts, self.device) if self.stacks else list(parts)

    def prepare(self, image: Pillow.Image) -> Prepared:
        """Preprocess one RGB image. Thread-safe."""
        raise ExtractorError(f"extractor {self.name!r} reads no pixels")

    def prepared_pixels(self, width: int, height: int) -> int:
        """Return the pixel count of the largest image inside ``prepare``; its memory is proportional to it."""
        return width * height

    def prepare_texts(self, texts: Sequence[str]) -> list[Prepared]:
        """Preprocess texts, e.g. to token ids; ``len()`` of each result is its cost. Thread-safe."""
        return list(texts) if self.tokens is None else self.tokens.encode(texts)

    def prepare_dialog(self, texts: Sequence[str]) -> Prepared:
        """Preprocess the texts of a whole dialog, one per image, as one query (``reads_dialogs``). Thread-safe."""
        raise ExtractorError(f"extractor {self.name!r} does not encode a dialog as one query")

    # ---- the model

    def encode_images(self, images: Sequence[Prepared | Pillow.Image | str]) -> np.ndarray:
        """Return rows [n, D] of table "image" or "target" for images (captions if it reads them), raw or prepared."""
        return self._begin(self._image_features, self._ready(images)).numpy()

    def encode_texts(self, texts: Sequence[Prepared | str]) -> np.ndarray:
        """Return rows [n, D] of table "text"."""
        return self._begin(self._text_features, self._ready(texts)).numpy()

    def encode_pairs(
        self, images: Sequence[Prepared | Pillow.Image | str], texts: Sequence[Prepared | str]
    ) -> np.ndarray:
        """Return rows [n, D] of table "query" for pairs (reference image, feedback text)."""
        if len(images) != len(texts):
            raise ExtractorError(f"{len(images)} images for {len(texts)} texts: pairs need one of each")
        return self._begin(self._pair_features, self._ready(images), self._ready(texts)).numpy()

    def begin(self, table: str, first: Sequence[Prepared], texts: Sequence[Prepared] = ()) -> PendingRows:
        """Start computing rows of ``table`` for prepared images, texts, or both ("query"), without waiting."""
        if table == "query":
            return self._begin(self._pair_features, first, texts)
        return self._begin(self._text_features if table == "text" else self._image_features, first)

    def _image_features(self, images: list[Prepared]) -> torch.Tensor:
        """Return features [n, D] of prepared images."""
        raise ExtractorError(f"extractor {self.name!r} has no image tower")

    def _text_features(self, texts: list[Prepared]) -> torch.Tensor:
        """Return features [n, D] of prepared texts."""
        raise ExtractorError(f"extractor {self.name!r} has no text tower")

    def _pair_features(self, images: list[Prepared], texts: list[Prepared]) -> torch.Tensor:
        """Return features [n, D] of prepared (image, text) pairs."""
        raise ExtractorError(f"extractor {self.name!r} is no joint model")

    def _ready(self, given: Sequence[Any]) -> list[Prepared]:
        if any(isinstance(one, str) for one in given):
            return self.prepare_texts(given)
        return [self.prepare(one) if isinstance(one, Pillow.Image) else one for one in given]

    def _begin(self, features: Any, *inputs: Sequence[Prepared]) -> PendingRows:
        count = len(inputs[0])
        if count == 0:
            raise ExtractorError(f"extractor {self.name!r} was given an empty batch")
        with torch.inference_mode():
            rows = features(*inputs)
            if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or len(rows) != count:
                found = tuple(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
                raise ExtractorError(f"extractor {self.name!r} gave {found} for {count} items; expected [{count}, D]")
            rows = rows.float()
            if self.options.normalise:
                rows = torch.nn.functional.normalize(rows, dim=-1)
            stored = PendingRows(rows.to(_DTYPES[self.options.store_dtype]))
        self.calls += count
        return stored
