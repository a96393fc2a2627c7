"""Preparation of items: read, decode and resize images (in worker processes), tokenize texts (in the caller)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.extraction.extractors.base import Extractor, ExtractorError
from pipeline.extraction.images import ItemError, one_line, read
from pipeline.extraction.progress import Meter
from pipeline.extraction.work import Item, ItemFailure


def prepare(extractor: Extractor, items: Sequence[Item], root: Path | None, meter: Meter) -> list[Any]:
    """Return for each item its prepared parts (image, text, or both) or an ItemFailure."""
    with meter.time("decode"):
        pixels = prepare_pixels(extractor, items, root)
    return add_texts(extractor, items, decode_ahead(extractor, items, pixels), meter)


def prepare_pixels(extractor: Extractor, items: Sequence[Item], root: Path | None) -> list[Any]:
    """Return for each item its prepared image (a list for a dialog), an ItemFailure, or None for one without a file."""
    return [
        _dialog(extractor, item, root) if item.turns else None if item.file is None else _pixels(extractor, item, root)
        for item in items
    ]


def decode_ahead(extractor: Extractor, items: Sequence[Item], pixels: Sequence[Any]) -> list[Any]:
    """Return ``pixels`` with what was left to the device done, in the batches' thread (``Extractor.decode_ahead``)."""
    places = [n for n, found in enumerate(pixels) if found is not None and not isinstance(found, ItemFailure | list)]
    ready = list(pixels)
    for n, found in zip(places, extractor.decode_ahead([pixels[n] for n in places]), strict=True):
        ready[n] = ItemFailure(items[n], found.stage, found.reason) if isinstance(found, ItemError) else found
    return ready


def add_texts(extractor: Extractor, items: Sequence[Item], pixels: Sequence[Any], meter: Meter) -> list[Any]:
    """Return for each item the list of its parts: the image of ``pixels``, the caption and the text, as it has them."""
    parts: list[Any] = [p if isinstance(p, ItemFailure) else [] if p is None else [p] for p in pixels]
    with meter.time("tokenise"):
        for n, item in enumerate(items):
            if item.turns and not isinstance(parts[n], ItemFailure):
                parts[n] = _chat(extractor, item, parts[n])
        for texts in ([item.caption for item in items], [item.text for item in items]):
            asked = [n for n, text in enumerate(texts) if text is not None and not items[n].turns]
            have = [n for n in asked if not isinstance(parts[n], ItemFailure)]
            ready = _texts(extractor, [texts[n] for n in have], [items[n] for n in have])
            for n, found in zip(have, ready, strict=True):
                parts[n] = found if isinstance(found, ItemFailure) else [*parts[n], found]
    return parts


def _pixels(extractor: Extractor, item: Item, root: Path | None) -> Any:
    assert item.file is not None and root is not None
    try:
        return extractor.prepare_file(read(root, item.file, item.image))
    except ItemError as error:
        return ItemFailure(item, error.stage, error.reason)
    except ExtractorError:  # no image can be read
        raise
    except Exception as error:  # an image shape that the model's preprocessing does not support
        return ItemFailure(item, "decode", f"preprocessing failed: {one_line(error)}")


def _dialog(extractor: Extractor, item: Item, root: Path | None) -> Any:
    """Return the prepared images of all turns, or the first failure."""
    images = [_pixels(extractor, turn, root) for turn in item.turns]
    failed = next((found for found in images if isinstance(found, ItemFailure)), None)
    return images if failed is None else ItemFailure(item, failed.stage, failed.reason)


def _chat(extractor: Extractor, item: Item, images: list[Any]) -> Any:
    """Return ``images`` with the prepared chat of all texts, or an ItemFailure."""
    try:
        return [*images, extractor.prepare_dialog([turn.text or "" for turn in item.turns])]
    except Exception as error:
        return ItemFailure(item, "tokenise", one_line(error))


def _texts(extractor: Extractor, texts: Sequence[Any], items: Sequence[Item]) -> list[Any]:
    try:
        return extractor.prepare_texts(texts)
    except Exception as error:
        if len(texts) == 1:
            return [ItemFailure(items[0], "tokenise", one_line(error))]
        return [_texts(extractor, [t], [i])[0] for t, i in zip(texts, items, strict=True)]
