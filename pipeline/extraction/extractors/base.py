"""The contract of a single-turn model (stage 1): items in, checked feature rows out, and a name for every difference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image as Pillow

from manifests.errors import FashionNTMError
from manifests.schema import Dataset, Frozen, Image
from pipeline.extraction.transfer import PendingRows

Prepared: TypeAlias = Any  # what ``prepare`` made of one item: an array, or several by name
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ExtractorError(FashionNTMError):
    """An extractor broke its contract: wrong shape, wrong number of rows, or a table that it does not have."""


@dataclass(frozen=True)
class Card:
    """Where a model comes from. ``contaminated_on``: datasets whose test pairs it may have been trained on.

    ``source``: hub id, folder or command that makes it. ``name``: short name of a published checkpoint. ``dims``: D by
    table, as published. ``clean``: what is done to texts before they are tokenised, "" for nothing.
    """

    licence: str
    source: str
    contaminated_on: tuple[str, ...] = ()
    notes: str = ""
    name: str = ""
    dims: Mapping[str, int] = field(default_factory=dict)
    clean: str = ""

    def as_dict(self) -> dict[str, Any]:
        """What there is to say, for ``ls extractors --long``."""
        return {
            "name": self.name,
            "source": self.source,
            "licence": self.licence,
            "dims": ", ".join(f"{table} {d}" for table, d in self.dims.items()),
            "trained on FashionIQ triplets": "yes" if "mt_fashioniq" in self.contaminated_on else "no",
            "notes": self.notes,
        }


class ExtractorOptions(Frozen):
    """Options of every extractor. ``contaminated_on`` lets a user declare it of a model of their own."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the model's computation
    store_dtype: Literal["float16", "float32"] = "float16"
    normalise: bool = True  # rows of unit L2 norm
    contaminated_on: tuple[str, ...] = ()


class Extractor(ABC):
    """One family of frozen single-turn models. One module holds exactly one.

    ``tables``: ("image", "text") of a dual encoder, or ("query", "target") of a joint model.
    ``reads``: what stands for an image, its "pixels" or its "caption".

    ``prepare`` and ``prepare_texts`` run in worker threads; the ``encode_*`` methods in one thread, on ``device``. A row
    depends on its own item alone, up to rounding, whatever else is in the batch.
    """

    title: ClassVar[str]
    version: ClassVar[int] = 1  # raise it when a change of the code changes a feature
    Options: ClassVar[type[ExtractorOptions]] = ExtractorOptions
    tables: ClassVar[tuple[str, ...]] = ("image", "text")
    reads: ClassVar[Literal["pixels", "caption"]] = "pixels"
    stacks: ClassVar[bool] = False  # its features take images stacked ahead of time, by transfer.to_device
    cards: ClassVar[tuple[Card, ...]] = ()  # the published checkpoints that it knows
    fittable: ClassVar[bool] = False  # ``fit-extractor`` can train it; see ``_fittable.Fittable``
    execution_only: ClassVar[tuple[str, ...]] = ()  # options that change no feature
    stated: ClassVar[tuple[str, ...]] = ()  # options that ``semantic`` states otherwise, as a digest in place of a path
    card: Card

    def __init__(self, options: ExtractorOptions, device: torch.device):
        self.options, self.device = options, device
        self.compute = _DTYPES[options.dtype]
        self.calls = 0  # items that went through the model

    @property
    def name(self) -> str:
        """The module's name, as in ``[extractor] name = ...``."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the stored features."""
        return np.dtype(self.options.store_dtype)

    @property
    def cut(self) -> int:
        """Texts so far that were longer than the model reads, and lost their end."""
        return 0

    @abstractmethod
    def dim(self, table: str) -> int:
        """D of the rows of ``table``, without a forward pass."""

    def semantic(self) -> dict[str, Any]:
        """Everything that can change a feature's value, and nothing else (no path, batch size or device).

        Field "options" holds every declared option that is neither ``execution_only`` nor ``stated``, its default
        included; it is absent when there is none. A child adds its fields to those returned here.
        """
        own = set(type(self.options).model_fields)
        own -= {*ExtractorOptions.model_fields, *self.execution_only, *self.stated}
        fields = {
            "extractor": self.name,
            "version": self.version,
            "compute_dtype": self.options.dtype,
            "store_dtype": self.options.store_dtype,
            "normalise": self.options.normalise,
        }
        return fields | ({"options": self.options.model_dump(mode="json", include=own)} if own else {})

    def image_tower(self) -> torch.nn.Module | None:
        """The module that takes ``pixel_values``, where it may run in another form (``extraction.forms``)."""
        return None

    def standin(self, image: Image, dataset: Dataset) -> str | None:
        """The text encoded in place of the image's pixels (``reads = "caption"``); None or blank when it has none."""
        return image.caption

    # ---- worker threads

    def prepare(self, image: Pillow.Image) -> Prepared:
        """One RGB image as the model takes it. Thread-safe."""
        raise ExtractorError(f"extractor {self.name!r} reads no pixels")

    def prepared_pixels(self, width: int, height: int) -> int:
        """Pixels of the largest image that ``prepare`` makes of one of this size: what its memory grows with."""
        return width * height

    def prepare_texts(self, texts: Sequence[str]) -> list[Prepared]:
        """Texts as the model takes them, e.g. token ids; ``len()`` of each is its cost. Thread-safe."""
        return list(texts)

    # ---- the model

    def encode_images(self, images: Sequence[Prepared | Pillow.Image | str]) -> np.ndarray:
        """Rows [n, D] of table "image" (or "target"); images prepared or as they come (stand-in texts likewise)."""
        if self.reads == "caption":
            return self._run(self._image_features, self._ready_texts(images))
        return self._run(self._image_features, self._ready_images(images))

    def encode_texts(self, texts: Sequence[Prepared | str]) -> np.ndarray:
        """Rows [n, D] of table "text"."""
        return self._run(self._text_features, self._ready_texts(texts))

    def encode_pairs(
        self, images: Sequence[Prepared | Pillow.Image | str], texts: Sequence[Prepared | str]
    ) -> np.ndarray:
        """Rows [n, D] of table "query": the joint model's answer to each (reference image, feedback text)."""
        if len(images) != len(texts):
            raise ExtractorError(f"{len(images)} images for {len(texts)} texts: pairs need one of each")
        ready = self._ready_texts(images) if self.reads == "caption" else self._ready_images(images)
        return self._run(self._pair_features, ready, self._ready_texts(texts))

    def begin(self, table: str, first: Sequence[Prepared], texts: Sequence[Prepared] = ()) -> PendingRows:
        """Rows of ``table`` for prepared items, without waiting for the device: images, texts, or both for "query"."""
        if table == "query":
            return self._begin(self._pair_features, first, texts)
        return self._begin(self._text_features if table == "text" else self._image_features, first)

    def _image_features(self, images: list[Prepared]) -> torch.Tensor:
        """Features [n, D] of prepared images."""
        raise ExtractorError(f"extractor {self.name!r} has no image tower")

    def _text_features(self, texts: list[Prepared]) -> torch.Tensor:
        """Features [n, D] of prepared texts."""
        raise ExtractorError(f"extractor {self.name!r} has no text tower")

    def _pair_features(self, images: list[Prepared], texts: list[Prepared]) -> torch.Tensor:
        """Features [n, D] of prepared (image, text) pairs."""
        raise ExtractorError(f"extractor {self.name!r} is no joint model")

    def _ready_images(self, images: Sequence[Any]) -> list[Prepared]:
        return [self.prepare(image) if isinstance(image, Pillow.Image) else image for image in images]

    def _ready_texts(self, texts: Sequence[Any]) -> list[Prepared]:
        return self.prepare_texts(texts) if any(isinstance(t, str) for t in texts) else list(texts)

    def _run(self, features: Any, *inputs: Sequence[Prepared]) -> np.ndarray:
        return self._begin(features, *inputs).numpy()

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
