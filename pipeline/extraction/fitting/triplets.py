"""Triplets for fitting a single-turn model, and a loader that prepares their images and texts in advance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from manifests.identity import digest
from manifests.schema import Dataset, Session
from pipeline.core.image_files import image_keys
from pipeline.extraction.extractors._fittable import Fittable
from pipeline.extraction.images import ItemError, decode, read
from pipeline.extraction.prefetch import in_order

CACHE_BYTES = 1 << 30  # cache of prepared images in memory; others are decoded again in each epoch


@dataclass(frozen=True)
class Triplet:
    """Single-turn query and its target: image ids and feedback text."""

    reference: str
    text: str
    target: str
    category: str


def triplets_of(sessions: Iterable[Session]) -> list[Triplet]:
    """Return the distinct (reference, text, turn's target) of ``sessions``, in order of first appearance."""
    # the category of a triplet is that of its last session: digests of fitted models depend on it
    found = {triplet: Triplet(*triplet, session.category) for session in sessions for triplet in session.triplets}
    return list(found.values())


def digest_of(triplets: Sequence[Triplet]) -> str:
    """Return a digest of the triplets, independent of their order."""
    return digest(sorted([t.reference, t.text, t.target] for t in triplets))


def content_of(triplets: Sequence[Triplet], dataset: Dataset, digests: Path) -> str:
    """Return the SHA-256 of the triplets by content (image bytes, texts, categories), in order.

    An unreadable image counts by its id. ``digests``: the cache file of image digests by stat.
    """
    keys: dict[str, str] = {}
    if dataset.images_root is not None:
        used = dict.fromkeys(image for t in triplets for image in (t.reference, t.target))
        found = image_keys((dataset.images[image] for image in used), dataset.images_root, digests)
        keys = {image: key.hex() for image, key in found.items() if isinstance(key, bytes)}
    ends = [(keys.get(t.reference, t.reference), keys.get(t.target, t.target)) for t in triplets]
    return digest([[a, t.text, b, t.category] for t, (a, b) in zip(triplets, ends, strict=True)])


@dataclass
class TripletBatch:
    """Prepared parts of n triplets; ``target_ids`` int64 [n] identifies the target images."""

    references: list[Any]
    texts: list[Any]
    targets: list[Any]
    target_ids: np.ndarray


@dataclass
class Loader:
    """Loader that prepares images and texts in ``workers`` threads, at most two batches ahead, with a memory cache.

    ``unreadable``: reason by image id for images that cannot be read or decoded; their triplets are skipped.
    """

    extractor: Fittable
    dataset: Dataset
    workers: int = 2
    cache_bytes: int = CACHE_BYTES
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._kept: dict[str, Any] = {}
        self._size = 0
        self._texts: dict[str, Any] = {}
        self._number: dict[str, int] = {}
        self._root = self.dataset.images_root and self.dataset.images_root.resolve()

    def image(self, image_id: str) -> Any | None:
        """Return the prepared image, or None if it is unreadable. Thread-safe."""
        if image_id in self._kept or image_id in self.unreadable:
            return self._kept.get(image_id)
        image = self.dataset.images[image_id]
        if self._root is None or image.file is None:
            self.unreadable[image_id] = "the image has no file"
            return None
        try:
            pixels = decode(read(self._root, image.file))
            self.extractor.check_size(*pixels.size)
            made = self.extractor.prepare(pixels)
        except ItemError as error:
            self.unreadable[image_id] = error.reason
            return None
        size = sum(a.nbytes for a in (made.values() if isinstance(made, dict) else [made]))
        if self._size + size <= self.cache_bytes:
            self._kept[image_id] = made
            self._size += size
        return made

    def text(self, text: str) -> Any:
        if text not in self._texts:
            self._texts[text] = self.extractor.prepare_texts([text])[0]
        return self._texts[text]

    def images(self, ids: Sequence[str], size: int) -> Iterator[tuple[list[str], list[Any]]]:
        """Yield (ids, prepared images) for the readable images in order, ``size`` per batch."""
        parts = (ids[start : start + size] for start in range(0, len(ids), size))
        for part, made in in_order(lambda part: [self.image(i) for i in part], parts, self.workers, 2):
            kept = [(i, m) for i, m in zip(part, made, strict=True) if m is not None]
            if kept:
                yield [i for i, _ in kept], [m for _, m in kept]

    def batches(self, triplets: Sequence[Triplet], parts: Iterable[Sequence[int]]) -> Iterator[TripletBatch]:
        """Yield a batch for the triplet numbers of each part, without triplets with an unreadable image."""
        for triplet in triplets:
            self._number.setdefault(triplet.target, len(self._number))

        def prepared(part: Sequence[int]) -> list[tuple[Triplet, Any, Any]]:
            some = [triplets[i] for i in part]
            return [(t, self.image(t.reference), self.image(t.target)) for t in some]

        for _, made in in_order(prepared, parts, self.workers, 2):
            good = [(t, a, b) for t, a, b in made if a is not None and b is not None]
            numbers = np.array([self._number[t.target] for t, _, _ in good], dtype=np.int64)
            texts = [self.text(t.text) for t, _, _ in good]
            yield TripletBatch([a for _, a, _ in good], texts, [b for _, _, b in good], numbers)
