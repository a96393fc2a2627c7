"""Computation precision and format of the image tower, and the agreement of their features with float32 and the plain one.

Precision changes features, so it is a field of the fingerprint (``compute_dtype``): each precision has its own store.
Formats (channels-last memory, torch.compile) are equal up to rounding, so they are not; the measured difference is
recorded with the session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import torch

from cache import Store, StoreNotFoundError, store_path
from manifests.errors import FashionNTMError
from manifests.schema import Component, Dataset, RunSpec
from pipeline.core.device import resolve_device
from pipeline.core.workspace import Workspace
from pipeline.evaluation.ranking import unit_rows
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.images import one_line
from pipeline.extraction.prepare import decode_ahead, prepare_pixels
from pipeline.extraction.tolerance import tolerance
from pipeline.extraction.work import Item, ItemFailure

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LEAST_COSINE = 0.995  # minimum cosine between a feature and its float32 counterpart
_ITEMS = 12  # compared with float32
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


class PrecisionError(FashionNTMError):
    """Features in the requested precision differ too much from float32."""


def with_precision(spec: RunSpec, precision: str) -> RunSpec:
    """Return ``spec`` with the extractor's ``dtype`` set by name: fp32, bf16 or fp16."""
    options = {**spec.extractor.options, "dtype": PRECISIONS[precision]}
    return spec.model_copy(update={"extractor": Component(name=spec.extractor.name, **options)})


def extractor_in(
    spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str, precision: str | None
) -> tuple[RunSpec, Extractor, str]:
    """Return (spec in ``precision``, its extractor, the reason of an automatic choice).

    ``precision``: fp32, bf16, fp16, None for the spec's own, or "auto": bf16 where ``device`` has units for it, unless
    another precision already has rows, so that no store stays incomplete.
    """
    if precision != "auto":
        asked = with_precision(spec, precision) if precision else spec
        return asked, load_extractor(asked, device), ""
    native, why = native_precision(resolve_device(device))
    asked = with_precision(spec, native)
    extractor = load_extractor(asked, device)
    for name, dtype in PRECISIONS.items():
        fields = extractor.semantic() | {"compute_dtype": dtype}
        path = store_path(workspace.stores, dataset.name, extractor.name, fields)
        with suppress(StoreNotFoundError):
            if any(table.rows for table in Store.open(path, verify="header").tables.values()):
                if name != native:
                    asked = with_precision(spec, name)
                    extractor = load_extractor(asked, device)
                return asked, extractor, f"{name}: {path.name} has rows in it already"
    return asked, extractor, f"{native}: {why}"


def native_precision(device: torch.device) -> tuple[str, str]:
    """Return (the fastest precision that ``device`` has units for, the reason)."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", f"{device} computes in it"
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    if device.type == "cpu" and amx():
        return "bf16", "this CPU has AMX"
    return "fp32", f"{device} has no units for bf16"


def sample_of(extractor: Extractor, dataset: Dataset) -> dict[str, list[Any]]:
    """Return a few prepared items each of "images" (pixels or captions) and "texts"."""
    texts = list(dict.fromkeys(text for _, text in dataset.queries()))
    step = max(1, len(texts) // _ITEMS)
    if extractor.reads == "caption":
        standins = (extractor.standin(image, dataset) for image in dataset.images.values())
        images = extractor.prepare_texts(list(islice(filter(None, standins), _ITEMS)))
    else:
        images = [found for (found,) in _readable(dataset, extractor)]
    return {"texts": extractor.prepare_texts(texts[::step][:_ITEMS]), "images": images}


def _readable(dataset: Dataset, *extractors: Extractor) -> list[tuple[Any, ...]]:
    """Return the first images that all ``extractors`` can prepare, each as prepared by every one of them."""
    found: list[tuple[Any, ...]] = []
    root = dataset.images_root.resolve() if dataset.images_root else None
    for image in dataset.images.values() if root else ():
        if len(found) == _ITEMS:
            break
        items = [Item(b"", (image.id,), file=image.file)]
        made = [decode_ahead(e, items, prepare_pixels(e, items, root))[0] for e in extractors if image.file]
        if made and not any(isinstance(one, ItemFailure) for one in made):
            found.append(tuple(made))
    for extractor in extractors:
        extractor.noted.clear()
    return found


def agreement(reference: Extractor, extractor: Extractor, sample: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Compare ``extractor``, in one batch and in batches of one, with float32 in batches of one; return the worst case.

    ``least_cosine``: between features; ``most_difference``: between elements of the unit vectors.
    """
    least, most = 1.0, 0.0
    for table, parts in _requests(extractor, sample):
        single = [tuple([p[n]] for p in parts) for n in range(len(parts[0]))]
        wanted, alone = (np.concatenate([trial_rows(e, table, *one) for one in single]) for e in (reference, extractor))
        wanted = unit_rows(wanted, np.float64)
        for found in (unit_rows(rows, np.float64) for rows in (alone, trial_rows(extractor, table, *parts))):
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
        what = f"a feature has cosine {found['least_cosine']:.4f} to its float32 twin, less than {LEAST_COSINE}"
        raise PrecisionError(f"in {extractor.options.dtype} {what}: use --precision fp32")
    return {"agreement_with_float32": {**found, "tolerance": LEAST_COSINE, "items": _ITEMS}}


def decode_agreement(extractor: Extractor, dataset: Dataset) -> dict[str, Any]:
    """Return the session record of another decode than Pillow's, compared on a few images; {} for Pillow's."""
    exact = extractor.exact()
    parts = _readable(dataset, extractor, exact) if exact is not None else []
    if not parts or exact is None:
        return {}
    both = zip((extractor, exact), zip(*parts, strict=True), strict=True)
    mine, wanted = (unit_rows(trial_rows(one, "image", one.stack(some)), np.float64) for one, some in both)
    cosine = float((mine * wanted).sum(axis=1).min())
    return {"decode": {"decoder": extractor.jpeg_decoder, "images": len(parts), "least_cosine_to_pillow": cosine}}


def _requests(extractor: Extractor, sample: Mapping[str, Sequence[Any]]) -> list[tuple[str, tuple[list[Any], ...]]]:
    """Return (table, parts) for each table with items in the sample."""
    images, texts = list(sample["images"]), list(sample["texts"])
    both = min(len(images), len(texts))
    parts = {"query": (images[:both], texts[:both]), "text": (texts,)}
    asked = [(table, parts.get(table, (images,))) for table in extractor.tables]
    return [(table, found) for table, found in asked if found[0]]
