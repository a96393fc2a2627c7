"""Recompute random rows of a store with the live model and compare them with the stored rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from cache import Store
from manifests.identity import stack_keys, text_key
from pipeline.evaluation.ranking import unit_rows
from pipeline.extraction.engine import ShardTask, process
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.progress import Meter
from pipeline.extraction.tolerance import recorded_decoder, tolerance_of
from pipeline.extraction.work import Item
from pipeline.stores.wanted import StoreRequest

TOP = 10
_BLOCK = 4096
Rows = tuple[dict[bytes, np.ndarray], dict[bytes, str]]  # key -> row [D], key -> reason why it has none


@dataclass(frozen=True)
class Recomputed:
    """One row: largest absolute difference, cosine, and the share of common top-10 neighbors."""

    table: str
    key: str
    name: str
    max_abs: float
    cosine: float
    top10: float
    problem: str = ""


@dataclass(frozen=True)
class FromExact:
    """Stored rows compared with those of the exact decode (Pillow's): cosines, and mean share of common neighbors."""

    rows: int
    least_cosine: float
    mean_cosine: float
    top10: float

    def text(self) -> str:
        cosines = f"cosine >= {self.least_cosine:.7f}, mean {self.mean_cosine:.7f}"
        agreement = f"top-{TOP} agreement {self.top10:.3f}"
        return f"       {self.rows:,} rows against Pillow's decode: {cosines}, {agreement}"


@dataclass(frozen=True)
class TableCheck:
    """K rows of one table. ``worst``: rows beyond the tolerance or that could not be computed. ``exact``: see there,
    None if the store has the exact decode or the table no images."""

    table: str
    rows: int
    sampled: int
    tolerance: float
    max_abs: float
    cosine: float  # minimum
    top10: float  # mean
    worst: tuple[Recomputed, ...]
    exact: FromExact | None = None

    @property
    def matches(self) -> bool:
        return not self.worst

    def text(self) -> str:
        found = f"max abs error {self.max_abs:.2e} (tolerance {self.tolerance:.0e}), cosine >= {self.cosine:.6f}"
        head = f"{self.table:6} {self.sampled:,} of {self.rows:,} rows computed again"
        lines = [f"{head}: {found}, top-{TOP} agreement {self.top10:.3f}"]
        if self.exact is not None:
            lines.append(self.exact.text())
        for row in self.worst[:5]:
            what = row.problem or f"max abs error {row.max_abs:.2e}, cosine {row.cosine:.6f}, top-{TOP} {row.top10:.1f}"
            lines.append(f"  error: key {row.key} ({row.name[:60]}): {what}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Reextraction:
    """Results for one store. ``left_out``: rows that the dataset does not reference, which cannot be recomputed."""

    store: str
    seed: int
    tables: tuple[TableCheck, ...]
    left_out: int
    decoders: tuple[str, ...] = ()  # of JPEG, of the store and of this device, if they differ

    @property
    def matches(self) -> bool:
        return all(table.matches for table in self.tables)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "matches": self.matches}

    def text(self) -> str:
        lines = [f"store  {self.store}", *(table.text() for table in self.tables)]
        if self.left_out:
            lines.append(f"note   {self.left_out:,} rows belong to nothing in the dataset and cannot be computed again")
        if self.decoders:
            what = f"the rows were decoded by {self.decoders[0]}, and here by {self.decoders[1]}"
            lines.append(f"note   {what}: the differences include those of the two decoders")
        if not self.matches:
            fix = "a store that it calls the spec's own should be deleted and extracted again"
            lines.append(f"these rows are not what the model gives now: `cache explain` names what differs, and {fix}")
        return "\n".join(lines)


def reextract(store: Store, request: StoreRequest, count: int, seed: int = 0, batch_size: int = 32) -> Reextraction:
    """Recompute ``count`` random rows of every table, drawn with ``seed``, with the live extractor (and composer).

    A composed row is computed end to end: image and text rows from the model, rounded to the dtype of the backbone's
    store, then composed. Neighbors are by cosine within the table; neighbors of a query are targets. Raises
    OtherStoreError if the store is not the spec's present one.
    """
    wanted, exact = request.own_store(store), request.extractor.exact()
    tables, left_out = [], 0
    for table in store.tables:
        items = wanted.tables.get(table, {})
        known = [key for key in map(bytes, store.keys(table)) if key in items]
        left_out += store.tables[table].rows - len(known)
        chosen = random.Random(f"{seed} {table}").sample(known, min(count, len(known)))
        if some := [items[key] for key in chosen]:
            check = _check(store, table, some, _rows(request, request.extractor, table, some, batch_size))
            if exact is not None and some[0].file is not None:
                rows, _ = _rows(request, exact, table, some, batch_size)
                check = replace(check, exact=_from_exact(store, table, some, rows))
            tables.append(check)
    decoders = (recorded_decoder(store.execution), request.extractor.jpeg_decoder)
    differ = decoders if all(decoders) and decoders[0] != decoders[1] else ()
    return Reextraction(str(store.path), seed, tuple(tables), left_out, differ)


def _rows(request: StoreRequest, extractor: Extractor, table: str, items: Sequence[Item], batch_size: int) -> Rows:
    """Return (key -> row [D] by the live model, key -> reason why it has none)."""
    if table in request.backbone.tables:
        return _extracted(request, extractor, table, items, batch_size)
    images = {i.image: Item(i.image, i.names, i.image, i.file, i.caption) for i in items if i.image}
    parts, failed = _extracted(request, extractor, "image", list(images.values()), batch_size)
    if table == "query":
        texts = {text_key(i.text): Item(text_key(i.text), (i.text,), text=i.text) for i in items if i.text}
        text_rows, bad = _extracted(request, extractor, "text", list(texts.values()), batch_size)
        parts, failed = parts | text_rows, failed | bad
    return _composed(request, table, items, parts, failed)


def _extracted(request: StoreRequest, extractor: Extractor, table: str, items: Sequence[Item], batch_size: int) -> Rows:
    root = request.dataset.images_root
    tasks, images = [ShardTask(table, tuple(items))], root.resolve() if root else None
    found: dict[bytes, np.ndarray] = {}
    failed: dict[bytes, str] = {}
    for outcome in process(extractor, tasks, images, batch_size, 0, Meter()):
        failed |= {f.item.key: f"{f.stage}: {f.reason}" for f in outcome.failures}
        if len(outcome):
            keys, rows = outcome.rows()
            found |= dict(zip(map(bytes, keys), rows, strict=True))
    return found, failed


@torch.no_grad()
def _composed(
    request: StoreRequest, table: str, items: Sequence[Item], parts: dict[bytes, np.ndarray], failed: dict[bytes, str]
) -> Rows:
    """Compose rows of ``table`` from image and text rows, ``parts``."""
    found, problems = {}, {}
    for item in items:
        keys = [item.image or b""] + ([text_key(item.text or "")] if table == "query" else [])
        if bad := [failed[key] for key in keys if key in failed]:
            problems[item.key] = bad[0]
            continue
        composer = request.head_for(item.key) if table == "query" else request.composer
        assert composer is not None  # own_store checked that the fields include its weights
        rows = [torch.from_numpy(parts[key].astype(np.float32))[None] for key in keys]
        found[item.key] = (composer.query(*rows) if table == "query" else composer.target(*rows))[0].numpy()
    return found, problems


def _check(store: Store, table: str, items: Sequence[Item], computed: Rows) -> TableCheck:
    limit, (rows, failed) = tolerance_of(store), computed
    good, bad = [i for i in items if i.key in rows], [i for i in items if i.key in failed]
    found = _compared(store, table, good, rows) if good else np.array([[0.0, 1.0, 1.0]])  # of no row
    names = [(table, item.key.hex(), item.names[0]) for item in good]
    done = [Recomputed(*name, *values) for name, values in zip(names, found.tolist(), strict=False)]
    none = (np.nan, np.nan, 0.0)
    lost = [Recomputed(table, i.key.hex(), i.names[0], *none, f"cannot be computed: {failed[i.key]}") for i in bad]
    worst = (*lost, *sorted((r for r in done if r.max_abs > limit), key=lambda r: -r.max_abs))
    summary = (float(found[:, 0].max()), float(found[:, 1].min()), float(found[:, 2].mean()))
    return TableCheck(table, store.tables[table].rows, len(items), limit, *summary, worst)


def _compared(store: Store, table: str, items: Sequence[Item], rows: dict[bytes, np.ndarray]) -> np.ndarray:
    """Return (maximum absolute error, cosine, share of common neighbors) of ``rows`` and the stored rows, [K, 3]."""
    fresh = np.stack([rows[item.key] for item in items]).astype(np.float64)
    stored = store.gather(table, store.find(table, stack_keys(i.key for i in items))).astype(np.float64)
    cosine = (unit_rows(fresh, np.float64) * unit_rows(stored, np.float64)).sum(axis=1)
    near = "target" if table == "query" and "target" in store.tables else table
    return np.stack([np.abs(fresh - stored).max(axis=1), cosine, _agreement(store, near, fresh, stored)], axis=1)


def _from_exact(store: Store, table: str, items: Sequence[Item], rows: dict[bytes, np.ndarray]) -> FromExact | None:
    good = [item for item in items if item.key in rows]
    if not good:
        return None
    _, cosine, agree = _compared(store, table, good, rows).T
    return FromExact(len(good), float(cosine.min()), float(cosine.mean()), float(agree.mean()))


def _agreement(store: Store, table: str, fresh: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Return the share of the top-10 rows of ``table`` for ``fresh`` [K, D] that are also top-10 for ``stored`` [K, D].

    Rows that tie with the tenth count as top-10, because the order of ties is arbitrary.
    """
    count = store.tables[table].rows
    k, fresh, stored = min(TOP, count), unit_rows(fresh, np.float64), unit_rows(stored, np.float64)
    best = np.full((2, len(fresh), k), -np.inf)  # top-10 scores so far, for the fresh and the stored rows
    near = np.zeros((len(fresh), k), dtype=np.int64)  # their indices, for the fresh rows
    for start in range(0, count, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, count))
        block = unit_rows(store.gather(table, rows), np.float64).T
        mine = np.concatenate([best[0], fresh @ block], axis=1)
        which = np.concatenate([near, np.broadcast_to(rows, (len(fresh), len(rows)))], axis=1)
        top = np.argpartition(-mine, k - 1, axis=1)[:, :k]
        best[0], near = np.take_along_axis(mine, top, axis=1), np.take_along_axis(which, top, axis=1)
        best[1] = -np.partition(-np.concatenate([best[1], stored @ block], axis=1), k - 1, axis=1)[:, :k]
    neighbors = unit_rows(store.gather(table, near.ravel()), np.float64).reshape(len(fresh), k, -1)
    theirs = np.einsum("nkd,nd->nk", neighbors, stored)
    return (theirs >= best[1].min(axis=1, keepdims=True) - 1e-9).mean(axis=1)
