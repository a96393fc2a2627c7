"""Tolerance between a stored row and the same row computed again.

Another batch, thread count or device sums in another order, and a stored value is rounded once. The defaults apply to
unit rows, whose values are at most 1: a few units in the last place of the coarser of the two dtypes, with a margin for
the error growth in a network. The value is part of the store's execution record, which later checks use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from cache import Store
from manifests.schema import Dataset
from pipeline.core.device import describe

if TYPE_CHECKING:
    from pipeline.extraction.extractors.base import Extractor

COMPUTED = {"float32": 1e-4, "bfloat16": 4e-2, "float16": 5e-3}  # maximum absolute difference of a unit row's values
STORED = {"float32": 1e-5, "float16": 1e-3}  # half a unit in the last place below 1, with a margin


def tolerance(compute: str, stored: str) -> float:
    """Return the maximum absolute difference of one value, for rows of unit norm.

    >>> tolerance("float32", "float16")
    0.001
    """
    return max(COMPUTED[compute], STORED[stored])


def recorded(extractor: Extractor, dataset: Dataset) -> dict[str, Any]:
    """Return settings for the execution record that are not part of the store's key: machine, paths, row tolerance."""
    options = extractor.options
    return {
        "device": describe(extractor.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": str(getattr(options, "model", "")),
        "images": str(dataset.images_root or ""),
        "tolerance": tolerance(options.dtype, str(options.store_dtype)),
    }


def recorded_decoder(execution: Sequence[Mapping[str, Any]]) -> str:
    """Return the JPEG decoder of the last session with rows that recorded one (see ``jpeg.py``), else ""."""
    found = (record.get("settings", {}).get("jpeg_decoder") for record in reversed(execution) if record.get("rows"))
    return next((decoder for decoder in found if isinstance(decoder, str)), "")


def tolerance_of(store: Store) -> float:
    """Return the tolerance recorded by the last extraction into ``store``, or the default for its dtypes."""
    for record in reversed(store.execution):
        found = record.get("settings", {}).get("tolerance")
        if isinstance(found, int | float) and found > 0:
            return float(found)
    fields: dict[str, Any] = store.fields.get("backbone", store.fields)
    # a composer turns the backbone's tolerance in its inputs into a small multiple
    factor = 4.0 if "composer" in store.fields else 1.0
    return factor * tolerance(fields.get("compute_dtype", "float32"), fields.get("store_dtype", "float16"))
