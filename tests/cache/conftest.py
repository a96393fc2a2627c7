"""Stores of random rows, real HDF5 on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache import StoreWriter, store_path

FIELDS: dict[str, Any] = {"weights": "abc", "dtype": "float16", "preprocessing": {"size": 224, "crop": "centre"}}


@lru_cache(maxsize=64)
def _content(start: int, count: int, dim: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    numbers = range(start, start + count)
    keys = b"".join(hashlib.sha256(n.to_bytes(8, "little")).digest()[:16] for n in numbers)
    features = [np.random.default_rng(n).standard_normal(dim).astype(dtype) for n in numbers]
    return np.frombuffer(keys, dtype=np.uint8).reshape(-1, 16), np.stack(features)


def content_rows(start: int, count: int, dim: int = 8, dtype: str = "float16") -> tuple[np.ndarray, np.ndarray]:
    """Rows whose features follow from their keys: keys uint8 [count, 16], features [count, dim]."""
    keys, features = _content(start, count, dim, dtype)
    return keys.copy(), features.copy()


@pytest.fixture
def rows() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return content_rows


@pytest.fixture
def fields() -> dict[str, Any]:
    return {**FIELDS, "preprocessing": dict(FIELDS["preprocessing"])}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return store_path(tmp_path / "stores", "demo", "clip", FIELDS)


@pytest.fixture
def writer(path: Path) -> Callable[..., StoreWriter]:
    """Opens a writer at ``path``, or elsewhere, or with other fields."""

    def open_writer(where: Path = path, **changes: Any) -> StoreWriter:
        about = {"dataset": "demo", "extractor": "clip", "fields": FIELDS, "execution": {"batch_size": 4}}
        return StoreWriter(where, **{**about, **changes})

    return open_writer


@pytest.fixture(scope="session")
def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "store"
    with StoreWriter(path, dataset="demo", extractor="clip", fields=FIELDS, execution={"batch_size": 4}) as w:
        for start, count in ((0, 300), (300, 5), (305, 295)):
            w.commit("image", *content_rows(start, count))
        w.commit("text", *content_rows(1000, 40, 6, "float32"), seconds=0.25)
        w.bind({f"image {n}": content_rows(n, 1)[0].tobytes() for n in range(20)})
    return path


@pytest.fixture
def three_shards(path: Path, _made_once: Path) -> Path:
    """A store with image rows 0-299, 300-304 and 305-599 in three shards, and 40 text rows in float32."""
    return shutil.copytree(_made_once, path)


@pytest.fixture
def child() -> Iterator[Callable[[Callable[[], None]], int]]:
    """Runs a function in a forked process and gives its wait status; 0 when it returned."""

    def run(work: Callable[[], None]) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    yield run
