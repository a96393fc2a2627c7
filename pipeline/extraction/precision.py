"""The precision a model computes in: by name or by measurement, and how near its features are to float32's.

Precision changes features, so it is a field of the fingerprint (``compute_dtype``): another precision is another
store, and rows of two precisions never meet in one.
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
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.images import ItemError, decode, read

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LEAST_COSINE = 0.995  # between a feature and its float32 twin; below it the precision is refused
_FASTER = 1.1  # a lower precision must gain a tenth
_ITEMS, _TIMED = 12, 8


class PrecisionError(FashionNTMError):
    """Features in the asked precision are too far from float32's."""


def with_precision(spec: RunSpec, precision: str) -> RunSpec:
    """``spec`` with its extractor's ``dtype`` set by name: fp32, bf16 or fp16."""
    options = {**spec.extractor.options, "dtype": PRECISIONS[precision]}
    return spec.model_copy(update={"extractor": Component(name=spec.extractor.name, **options)})


def choose_precision(spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str) -> tuple[RunSpec, str]:
    """(spec in the fastest precision that is true enough, why). One that already has rows is kept: no store is left half.

    Measured on a few of the dataset's own items.
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
    """Prepared items by side, a few each: "images" (pixels or stand-in texts) and "texts"."""
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
    """The worst case over ``sample`` of ``extractor``, in one batch and in batches of one, against float32 one by one.

    ``least_cosine`` between the features, ``most_difference`` of an element of the unit vectors.
    """
    least, most = 1.0, 0.0
    for table, parts in _requests(extractor, sample):
        wanted = _unit(
            np.concatenate([_rows(reference, table, tuple([p[n]] for p in parts)) for n in range(len(parts[0]))])
        )
        alone = np.concatenate([_rows(extractor, table, tuple([p[n]] for p in parts)) for n in range(len(parts[0]))])
        for found in (_unit(alone), _unit(_rows(extractor, table, parts))):
            least = min(least, float((found * wanted).sum(axis=1).min()))
            most = max(most, float(np.abs(found - wanted).max()))
    return {"least_cosine": least, "most_difference": most}


def checked_agreement(spec: RunSpec, extractor: Extractor, dataset: Dataset) -> dict[str, Any]:
    """What the session records about a precision below float32; {} in float32. Raises PrecisionError when it is too far."""
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
    """(table, its parts) for every table that the sample has items of."""
    images, texts = list(sample["images"]), list(sample["texts"])
    both = min(len(images), len(texts))
    parts = {"query": (images[:both], texts[:both]), "text": (texts,)}
    asked = [(table, parts.get(table, (images,))) for table in extractor.tables]
    return [(table, found) for table, found in asked if found[0]]


def _rows(extractor: Extractor, table: str, parts: tuple[list[Any], ...]) -> np.ndarray:
    calls = extractor.calls
    rows = extractor.begin(table, *parts).numpy().astype(np.float64)
    extractor.calls = calls  # measuring is no extraction
    return rows


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _seconds(extractor: Extractor, sample: Mapping[str, Sequence[Any]]) -> float:
    """The best of a few passes over the sample."""
    found = []
    for _ in range(_TIMED + 1):
        began = time.perf_counter()
        for table, parts in _requests(extractor, sample):
            _rows(extractor, table, parts)
        found.append(time.perf_counter() - began)
        if sum(found) > 3 and len(found) > 2:
            break
    return min(found[1:])
