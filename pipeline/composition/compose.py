"""Compute a composer's query and target rows from a backbone store and write them into a second store."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import Store, StoreWriter, store_path
from manifests.errors import FashionNTMError
from manifests.identity import NO_IMAGE_KEY, pair_key, stack_keys, text_key
from manifests.schema import Dataset
from pipeline.composition.composers.base import Composer
from pipeline.composition.crossfit import CrossFitted


@dataclass
class Composed:
    """Result of ``compose``: rows written and rows already present, by table."""

    path: Path
    written: dict[str, int] = field(default_factory=dict)
    reused: dict[str, int] = field(default_factory=dict)
    requested: dict[str, int] = field(default_factory=dict)  # before deduplication
    failed: int = 0
    why: dict[str, int] = field(default_factory=dict)  # reason -> failed rows
    crossed: int = 0  # query rows computed by the head of their fold
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path)}

    def text(self) -> str:
        lines = [f"store  {self.path}"]
        for table, written in self.written.items():
            counts = f"{written:,} composed, {self.reused[table]:,} reused"
            unique = f"{self.requested[table]:,} requested, {written + self.reused[table]:,} unique"
            lines.append(f"{table:6} {unique}: {counts}")
        if self.crossed:
            lines.append(f"{self.crossed:,} query rows of train sessions come from heads that have not seen them")
        if self.failed:
            lines.append(f"{self.failed:,} failed: {', '.join(f'{n:,} {why}' for why, n in self.why.items())}")
        return "\n".join(lines)


def composed_fields(
    backbone: Store, composer: Composer, weights: str | None, crossed: CrossFitted | None = None
) -> dict[str, Any]:
    """Return the semantic fields of the composed store. ``weights``: SHA-256 of the checkpoint, None if untrained."""
    options = composer.options.model_dump()
    about = {"name": composer.name, "version": composer.version, "options": options, "weights": weights}
    about |= {"folds": crossed.fields()} if crossed else {}
    return {"backbone": backbone.fields, "composer": about, "dtype": "float32"}


def compose(
    backbone: Store,
    dataset: Dataset,
    composer: Composer,
    stores: Path,
    weights: str | None = None,
    shard_rows: int = 16384,
    crossed: CrossFitted | None = None,
) -> Composed:
    """Compute the rows of all queries of ``dataset`` (ST + cat's included) and all catalog images; resumable.

    ``crossed``: heads by fold. The head that was fitted without a train session computes the session's query rows, also
    those shared with a test session. ``composer`` computes all other rows and all targets.

    A query or image without its backbone row is recorded as failed in the composed store's ledger.
    """
    start, catalogue = time.perf_counter(), backbone.catalogue()
    fields, extractor = composed_fields(backbone, composer, weights, crossed), f"{backbone.extractor}+{composer.name}"
    path = store_path(stores, backbone.dataset, extractor, fields)
    execution = {"backbone": backbone.fingerprint, "shard_rows": shard_rows, "torch": torch.__version__}
    report = Composed(path)
    queries = list(dataset.queries())
    pairs = {pair: None for pair in queries if pair[0] in catalogue}
    report.requested = {"target": len(dataset.images), "query": len(queries)}
    with StoreWriter(path, dataset=backbone.dataset, extractor=extractor, fields=fields, execution=execution) as writer:
        writer.bind(catalogue)

        def fail(table: str, item: str, reason: str, key: bytes | None = None, what: str = "image") -> None:
            report.failed += 1
            why = f"{'queries' if table == 'query' else 'targets'} without the features of their {what}"
            report.why[why] = report.why.get(why, 0) + 1
            writer.fail(table, item, "compose", reason, key=key)

        targets = dict.fromkeys(catalogue[i] for i in dataset.images if i in catalogue)
        images = [(key, key, b"") for key in targets]
        texts = [(pair_key(catalogue[i], text_key(t)), catalogue[i], text_key(t)) for i, t in pairs]
        names = {key: i for i, key in catalogue.items()}
        heads = {-1: composer} | dict(enumerate(crossed.heads if crossed else ()))
        for table, work in (("target", images), ("query", list(dict.fromkeys(texts)))):
            todo, image_rows, text_rows = _missing(writer, backbone, table, work)
            alone = np.array([work[n][1] == NO_IMAGE_KEY for n in todo], dtype=bool)
            absent = ((image_rows < 0) & ~alone) | (text_rows < 0)
            for n in np.flatnonzero(absent):
                what = "text" if text_rows[n] < 0 else "image"
                row_key, image_key, _ = work[todo[n]]
                fail(table, names[image_key], f"its {what} row is not in {backbone.path.name}", row_key, what)
            todo, image_rows, text_rows = todo[~absent], image_rows[~absent], text_rows[~absent]
            report.reused[table], report.written[table] = len(work) - len(todo) - int(absent.sum()), len(todo)
            for first in range(0, len(todo), shard_rows):
                part, began = slice(first, first + shard_rows), time.perf_counter()
                if table == "query":
                    by = np.array([crossed.head_of(work[n][0]) if crossed else -1 for n in todo[part]])
                    report.crossed += int((by >= 0).sum())
                    features = _queries(heads, by, backbone, image_rows[part], text_rows[part])
                else:
                    features = _features(composer, backbone, image_rows[part], None)
                writer.commit(table, stack_keys(work[n][0] for n in todo[part]), features, time.perf_counter() - began)
        for image in sorted({i for i in dataset.images if i not in catalogue}):
            fail("target", image, "the image has no features: see the backbone store's failures")
    report.seconds = time.perf_counter() - start
    return report


def _missing(
    writer: StoreWriter, backbone: Store, table: str, work: list[tuple[bytes, bytes, bytes]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the positions in ``work`` (row, image, text key) to compute, and their backbone rows (-1: absent)."""
    if not work:
        empty = np.empty(0, dtype=np.int64)
        return empty, empty, empty
    todo = np.flatnonzero(writer.missing(table, stack_keys(w[0] for w in work)))
    image_rows = backbone.find("image", stack_keys(work[n][1] for n in todo))
    if table == "target":
        return todo, image_rows, np.zeros(len(todo), dtype=np.int64)
    return todo, image_rows, backbone.find("text", stack_keys(work[n][2] for n in todo))


def _queries(
    heads: dict[int, Composer], by: np.ndarray, backbone: Store, image_rows: np.ndarray, text_rows: np.ndarray
) -> np.ndarray:
    """Return query rows, each from its head (``by`` int64 [n]: fold, or -1 for the head of all)."""
    out = np.empty((len(by), heads[-1].dim), dtype=np.float32)
    for head in np.unique(by).tolist():
        mine = by == head
        out[mine] = _features(heads[head], backbone, image_rows[mine], text_rows[mine])
    return out


@torch.no_grad()
def _features(composer: Composer, backbone: Store, image_rows: np.ndarray, text_rows: np.ndarray | None) -> np.ndarray:
    image = torch.from_numpy(backbone.gather("image", np.maximum(image_rows, 0)).astype(np.float32))
    image[torch.from_numpy(image_rows < 0)] = 0  # text-only turns
    if text_rows is None:
        features = composer.target(image)
    else:
        features = composer.query(image, torch.from_numpy(backbone.gather("text", text_rows).astype(np.float32)))
    if not torch.isfinite(features).all():
        raise FashionNTMError(f"composer {composer.title!r} gave NaN or Inf: check its checkpoint, or fit it again")
    return features.numpy()
