"""What the tests of extraction share: running a job small and silent, and looking at a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import Store
from manifests.schema import Dataset
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.extractors.clip import ClipExtractor
from pipeline.extraction.report import Report
from pipeline.extraction.run import extract

ROOT = Path(__file__).resolve().parents[3]


def run(data: Dataset, extractor: Extractor, stores: Path, **how: Any) -> Report:
    return extract(data, extractor, stores, **{"progress": "silent", "batch_size": 4, "shard_rows": 8, **how})


def rows_by_key(store: Store, table: str) -> dict[bytes, np.ndarray]:
    return {k.tobytes(): r for k, r in zip(store.keys(table), store.load(table), strict=True)}


def shards_of(path: Path) -> dict[str, str]:
    """File name -> digest: equal for two stores exactly when all their shards have equal bytes."""
    tables = Store.open(path).tables.values()
    return {shard.file: shard.sha256 for table in tables for shard in table.shards}


def texts_of(data: Dataset) -> list[str]:
    return list(dict.fromkeys(text for _, text in data.queries()))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir() if p.is_file()}


def store_in(stores: Path) -> Path:
    """The one store of the tiny dataset."""
    (folder,) = [p for p in (stores / "tiny").iterdir() if p.is_dir()]
    return folder


def tiny(kind: type[Extractor], folder: Path) -> Any:
    return kind(kind.Options(model=str(folder), store_dtype="float32"), torch.device("cpu"))


class JointExtractor(ClipExtractor):
    """A joint model made of the tiny CLIP: a query is the image plus the text."""

    tables = ("query", "target")

    def dim(self, table: str) -> int:
        return super().dim("image")

    def _pair_features(self, images: list, texts: list) -> torch.Tensor:
        return self._image_features(images) + self._text_features(texts)
