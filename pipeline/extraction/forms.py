"""Other ways to run the same image tower: channels-last memory, torch.compile. They give the same features up to rounding,
so the form is no part of a store's fingerprint; how near its rows came to the plain ones is recorded with the session.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from manifests.errors import FashionNTMError
from manifests.schema import Dataset
from pipeline.extraction.batches import collate_for
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.precision import sample_of
from pipeline.extraction.prepare import one_line
from pipeline.stores.tolerance import tolerance

FORMS = ("plain", "channels-last", "compiled")
_TIMED = 3  # batches


class FormError(FashionNTMError):
    """The model cannot run in this form here."""


def take_form(extractor: Extractor, form: str) -> Callable[[], None]:
    """From now on the image tower runs in ``form``; what is returned undoes it. "compiled" is channels-last too.

    Raises FormError for an extractor whose tower has no other form.
    """
    tower = extractor.image_tower()
    if form == "plain":
        return lambda: None
    if tower is None:
        raise FormError(f"extractor {extractor.name!r} runs in one form only: leave out --form {form}")
    tower.to(memory_format=torch.channels_last)
    hook = tower.register_forward_pre_hook(_reordered, with_kwargs=True)
    if form == "compiled":
        tower.compile()

    def undo() -> None:
        tower._compiled_call_impl = None
        hook.remove()
        tower.to(memory_format=torch.contiguous_format)

    return undo


def checked_form(
    extractor: Extractor, dataset: Dataset, form: str, images: int = 0, batch_size: int = 32
) -> dict[str, Any]:
    """``take_form``, held against the plain form on some of the dataset's own images; what the session records of it.

    "auto" takes the form in which ``images`` of them are done first, the time to compile included. {} where the plain form
    was asked for, or is the only one.

    Raises FormError when the form does not run here, or its rows are further from the plain ones than the store's tolerance.
    """
    if form == "plain" or (form == "auto" and extractor.image_tower() is None):
        return {}
    batch = _batch(extractor, dataset, batch_size)
    plain = _rows(extractor, batch)
    seconds = {"plain": images / len(batch) * _seconds(extractor, batch)} if form == "auto" else {}
    apart: dict[str, float] = {}
    for name in FORMS[1:] if form == "auto" else (form,):
        began, undo = time.perf_counter(), take_form(extractor, name)
        try:
            apart[name] = _apart(extractor, batch, plain)
            if form == "auto":
                ready = time.perf_counter() - began
                seconds[name] = ready + images / len(batch) * _seconds(extractor, batch)
        except Exception as error:  # no compiler, an operation that it does not know, rows too far apart
            if form != "auto":
                raise FormError(f"--form {name} does not work here: {one_line(error)}") from error
        if form == "auto":
            undo()
    best = min(seconds, key=lambda name: seconds[name]) if form == "auto" else form
    if form == "auto":
        take_form(extractor, best)
    measured = {"form_seconds": {name: round(s, 1) for name, s in seconds.items()}} if seconds else {}
    return {"form": best, "from_plain": apart.get(best, 0.0), **measured}


def _reordered(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    pixels = named["pixel_values"].contiguous(memory_format=torch.channels_last)
    return given, {**named, "pixel_values": pixels}


def _batch(extractor: Extractor, dataset: Dataset, size: int) -> Any:
    """``size`` prepared images: a few of the dataset's, repeated. Raises FormError when none can be read."""
    some = sample_of(extractor, dataset)["images"]
    if not some:
        raise FormError("no image of the dataset could be read to try the form on: use --form plain")
    parts = [some[n % len(some)] for n in range(size)]
    return collate_for(extractor.device)(parts) if extractor.stacks else parts


def _rows(extractor: Extractor, batch: Any) -> np.ndarray:
    calls = extractor.calls
    rows = extractor.begin("image", batch).numpy().astype(np.float64)
    extractor.calls = calls  # trying is no extraction
    return rows


def _apart(extractor: Extractor, batch: Any, plain: np.ndarray) -> float:
    """The largest difference of a value; as large as the store allows at most."""
    found = float(np.abs(_rows(extractor, batch) - plain).max())
    allowed = tolerance(extractor.options.dtype, extractor.options.store_dtype)
    if not found <= allowed:
        raise FormError(f"a value of its rows is {found:.1e} from the plain form's, more than {allowed:.0e}")
    return found


def _seconds(extractor: Extractor, batch: Any) -> float:
    """Of a batch: the best of a few."""
    found = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        _rows(extractor, batch)
        found.append(time.perf_counter() - began)
    return min(found)
