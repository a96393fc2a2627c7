"""Preparation of items in worker threads: read, decode, resize and tokenize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.images import ItemError, decode, read
from pipeline.extraction.meter import Meter
from pipeline.extraction.work import Item


@dataclass(frozen=True)
class ItemFailure:
    """Failed item. ``stage``: "read", "decode", "tokenise" or "encode"."""

    item: Item
    stage: str
    reason: str


def prepare(extractor: Extractor, items: Sequence[Item], root: Path | None, meter: Meter) -> list[Any]:
    """Return for each item its prepared parts (image, text, or both) or an ItemFailure. Runs in worker threads."""
    parts: list[list[Any] | ItemFailure] = [[] for _ in items]
    for n, item in enumerate(items):
        if item.turns:
            assert root is not None
            with meter.time("decode"):
                parts[n] = _dialog(extractor, item, root)
        elif item.file is not None:
            assert root is not None
            with meter.time("decode"):
                parts[n] = _pixels(extractor, item, root)
    with meter.time("tokenise"):
        for texts in ([item.caption for item in items], [item.text for item in items]):
            have = [
                n
                for n, t in enumerate(texts)
                if t is not None and not items[n].turns and not isinstance(parts[n], ItemFailure)
            ]
            ready = _texts(extractor, [texts[n] for n in have], [items[n] for n in have])
            for n, found in zip(have, ready, strict=True):
                parts[n] = found if isinstance(found, ItemFailure) else [*parts[n], found]  # type: ignore[misc]
    return parts


def _pixels(extractor: Extractor, item: Item, root: Path) -> list[Any] | ItemFailure:
    assert item.file is not None
    try:
        return [extractor.prepare(decode(read(root, item.file, item.image)))]
    except ItemError as error:
        return ItemFailure(item, error.stage, error.reason)
    except Exception as error:  # an image shape that the model's preprocessing does not support
        return ItemFailure(item, "decode", f"preprocessing failed: {one_line(error)}")


def _dialog(extractor: Extractor, item: Item, root: Path) -> list[Any] | ItemFailure:
    """Return [prepared images of all turns, prepared chat of all texts]."""
    images: list[Any] = []
    for turn in item.turns:
        found = _pixels(extractor, turn, root)
        if isinstance(found, ItemFailure):
            return ItemFailure(item, found.stage, found.reason)
        images += found
    try:
        return [images, extractor.prepare_dialog([turn.text or "" for turn in item.turns])]
    except Exception as error:
        return ItemFailure(item, "tokenise", one_line(error))


def _texts(extractor: Extractor, texts: Sequence[Any], items: Sequence[Item]) -> list[Any]:
    try:
        return extractor.prepare_texts(texts)
    except Exception as error:
        if len(texts) == 1:
            return [ItemFailure(items[0], "tokenise", one_line(error))]
        return [_texts(extractor, [t], [i])[0] for t, i in zip(texts, items, strict=True)]


def one_line(error: BaseException) -> str:
    """Format an error as a one-line reason for the ledger."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
