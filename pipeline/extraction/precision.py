"""Computation precision, by name or by measurement, and the agreement of its features with float32.

Precision changes features, so it is a field of the fingerprint (``compute_dtype``): each precision has its own store.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cache import StoreNotFoundError
from manifests.errors import FashionNTMError
from manifests.schema import Component, Dataset, RunSpec
from pipeline.core.device import resolve_device
from pipeline.core.workspace import Workspace
from pipeline.evaluation.rows import unit_rows
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.images import ItemError, decode, read

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LEAST_COSINE = 0.995  # minimum cosine between a feature and its float32 counterpart
_FASTER = 1.1  # minimum speed-up of a lower precision
_ITEMS, _TIMED = 12, 8


class PrecisionError(FashionNTMError):
    """Features in the requested precision differ too much from float32."""


def with_precision(spec: RunSpec, precision: str) -> RunSpec:
    """Return ``spec`` with the extractor's ``dtype`` set by name: fp32, bf16 or fp16."""
    options = {**spec.extractor.options, "dtype": PRECISIONS[precision]}
    return spec.model_copy(update={"extractor": Component(name=spec.extractor.name, **options)})


def choose_precision(spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str) -> tuple[RunSpec, str]:
    """Return (spec in the fastest precision close enough to float32, reason), measured on items of the dataset.

    A precision that already has rows is kept, so that no store stays incomplete.
    """
    from pipeline.extraction.plan import open_store

    kind = resolve_device(device).type
    names = ("fp32", "bf16", "fp16") if kind == "cuda" else ("fp32", "bf16")
    reference = load_extractor(with_precision(spec, "fp32"), device)
    sample = sample_of(reference, dataset)
    seconds, far = {}, {}
    for name in names:
        asked = with_precision(spec, name)
        extractor = reference if name == "fp32" else load_extractor(asked, device)
        try:
            store = open_store(workspace.stores, dataset, extractor)
        except StoreNotFoundError:
            store = None
        if store is not None and any(t.rows for t in store.tables.values()):
            return asked, f"{name}: {store.path.name} has rows in it already"
        seconds[name] = _seconds(extractor, sample)
        far[name] = 1.0 if extractor is reference else agreement(reference, extractor, sample)["least_cosine"]
    best = "fp32"
    for name in names[1:]:
        if far[name] >= LEAST_COSINE and seconds[name] * _FASTER < seconds[best]:
            best = name
    times = ", ".join(f"{n} {1e3 * s:.1f} ms and cosine {far[n]:.5f}" for n, s in seconds.items())
    return with_precision(spec, best), f"{best}: a few items took {times}"


def sample_of(extractor: Extractor, dataset: Dataset) -> dict[str, list[Any]]:
    """Return a few prepared items each of "images" (pixels or captions) and "texts"."""
    texts = list(dict.fromkeys(text for _, text in dataset.queries()))
    step = max(1, len(texts) // _ITEMS)
    sample = {"texts": extractor.prepare_texts(texts[::step][:_ITEMS]), "images": []}
    root = dataset.images_root.resolve() if dataset.images_root else None
    for image in dataset.images.values():
        if len(sample["images"]) == _ITEMS:
            break
        try:
            if extractor.reads == "caption":
                standin = extractor.standin(image, dataset)
                sample["images"] += extractor.prepare_texts([standin]) if standin else []
            elif image.file and root is not None:
                sample["images"].append(extractor.prepare(decode(read(root, image.file))))
        except ItemError:
            continue
    return sample


def agreement(reference: Extractor, extractor: Extractor, sample: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Compare ``extractor``, in one batch and in batches of one, with float32 in batches of one; return the worst case.

    ``least_cosine``: between features; ``most_difference``: between elements of the unit vectors.
    """
    least, most = 1.0, 0.0
    for table, parts in _requests(extractor, sample):
        alone_32 = [_rows(reference, table, tuple([p[n]] for p in parts)) for n in range(len(parts[0]))]
        wanted = unit_rows(np.concatenate(alone_32), np.float64)
        alone = np.concatenate([_rows(extractor, table, tuple([p[n]] for p in parts)) for n in range(len(parts[0]))])
        for found in (unit_rows(alone, np.float64), unit_rows(_rows(extractor, table, parts), np.float64)):
            least = min(least, float((found * wanted).sum(axis=1).min()))
            most = max(most, float(np.abs(found - wanted).max()))
    return {"least_cosine": least, "most_difference": most}


def checked_agreement(spec: RunSpec, extractor: Extractor, dataset: Dataset) -> dict[str, Any]:
    """Return the session record of a lower precision; {} for float32. Raises PrecisionError if it differs too much."""
    if extractor.compute == torch.float32:
        return {}
    reference = load_extractor(with_precision(spec, "fp32"), str(extractor.device))
    found = agreement(reference, extractor, sample_of(extractor, dataset))
    if not found["least_cosine"] >= LEAST_COSINE:
        raise PrecisionError(
            f"in {extractor.options.dtype} a feature has cosine {found['least_cosine']:.4f} to its float32 twin, less than "
            f"{LEAST_COSINE}: use --precision fp32"
        )
    return {"agreement_with_float32": {**found, "tolerance": LEAST_COSINE, "items": _ITEMS}}


def _requests(extractor: Extractor, sample: Mapping[str, Sequence[Any]]) -> list[tuple[str, tuple[list[Any], ...]]]:
    """Return (table, parts) for each table with items in the sample."""
    images, texts = list(sample["images"]), list(sample["texts"])
    both = min(len(images), len(texts))
    parts = {"query": (images[:both], texts[:both]), "text": (texts,)}
    asked = [(table, parts.get(table, (images,))) for table in extractor.tables]
    return [(table, found) for table, found in asked if found[0]]


def _rows(extractor: Extractor, table: str, parts: tuple[list[Any], ...]) -> np.ndarray:
    calls = extractor.calls
    rows = extractor.begin(table, *parts).numpy().astype(np.float64)
    extractor.calls = calls  # measurements are not counted
    return rows


def _seconds(extractor: Extractor, sample: Mapping[str, Sequence[Any]]) -> float:
    """Return the minimum seconds of several passes over the sample."""
    found = []
    for _ in range(_TIMED + 1):
        began = time.perf_counter()
        for table, parts in _requests(extractor, sample):
            _rows(extractor, table, parts)
        found.append(time.perf_counter() - began)
        if sum(found) > 3 and len(found) > 2:
            break
    return min(found[1:])
