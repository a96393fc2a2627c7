"""Formats of the image tower: channels-last memory, torch.compile. Features are equal up to rounding, so the format is
not part of a store's fingerprint; the measured difference to the default format is recorded with the session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from manifests.errors import FashionNTMError
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.images import one_line
from pipeline.extraction.tolerance import tolerance

_BATCH = 32  # images on which a format is tried
FORMS = ("plain", "channels-last", "compiled")


class FormError(FashionNTMError):
    """The model cannot run in this format."""


def take_form(extractor: Extractor, form: str) -> Callable[[], None]:
    """Switch the image tower to ``form``; return a function that undoes it. "compiled" implies channels-last.

    Raises FormError for an extractor whose tower has a single format.
    """
    if form == "plain":
        return lambda: None
    tower = _tower(extractor, form)
    tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    hook = tower.register_forward_pre_hook(_reordered, with_kwargs=True)
    if form == "compiled":
        tower.compile()

    def undo() -> None:
        tower._compiled_call_impl = None
        hook.remove()
        tower.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    return undo


def checked_form(extractor: Extractor, images: Sequence[Any], form: str) -> dict[str, Any]:
    """Call ``take_form`` and compare with the default on prepared ``images``; return the session record.

    Raises FormError when the format does not run on this machine, or its rows differ from the default by more than the
    store's tolerance; the tower is then restored.
    """
    if form == "plain":
        return {}
    _tower(extractor, form)
    batch = _batch(extractor, images)
    plain, undo = trial_rows(extractor, "image", batch), take_form(extractor, form)
    try:
        apart = float(np.abs(trial_rows(extractor, "image", batch) - plain).max())
        allowed = tolerance(extractor.options.dtype, extractor.options.store_dtype)
        if not apart <= allowed:
            raise FormError(f"a value of its rows is {apart:.1e} from the plain form's, more than {allowed:.0e}")
    except Exception as error:  # no compiler, an unsupported operation, too large a difference
        undo()
        raise FormError(f"--form {form} does not work here: {one_line(error)}") from error
    return {"form": form, "from_plain": apart}


def _tower(extractor: Extractor, form: str) -> torch.nn.Module:
    tower = extractor.image_tower()
    if tower is None:
        raise FormError(f"extractor {extractor.name!r} runs in one form only: leave out --form {form}")
    return tower


def _reordered(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    pixels = named["pixel_values"]
    if pixels.ndim != 4:  # patches, not an image
        return given, named
    return given, {**named, "pixel_values": pixels.contiguous(memory_format=torch.channels_last)}


def _batch(extractor: Extractor, images: Sequence[Any]) -> Any:
    """Return a batch of the images, repeated if necessary. Raises FormError without any image."""
    if not images:
        raise FormError("no image could be read to try the form on: use --form plain")
    return extractor.stack([images[n % len(images)] for n in range(_BATCH)])


def trial_rows(extractor: Extractor, table: str, *parts: Any) -> np.ndarray:
    """Return rows of prepared items, float64 [n, D]; they do not count as calls of the extractor."""
    calls = extractor.calls
    rows = extractor.begin(table, *parts).numpy().astype(np.float64)
    extractor.calls = calls
    return rows
