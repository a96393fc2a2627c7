"""A table as a tensor: read straight into its memory, or through blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cache import Store, StoreLookupError, StoreWriter
from pipeline.training.features import _by_blocks, load_table


@pytest.fixture
def store(tmp_path: Path) -> Store:
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "s", dataset="demo", extractor="clip", fields={}) as writer:
        for _ in range(3):
            keys = rng.integers(0, 256, (50, 16), dtype=np.uint8)
            writer.commit("query", keys, rng.standard_normal((50, 12)).astype(np.float16))
    return Store.open(tmp_path / "s")


def test_a_table_is_one_call(store: Store) -> None:
    rows = store.load("query")
    for pinned in (False, True):
        found = load_table(store, "query", pinned=pinned)
        assert found.dtype == torch.float16 and np.array_equal(found.numpy(), rows)
        assert found.is_pinned() == (pinned and torch.cuda.is_available())
    wide = load_table(store, "query", dtype=torch.float32)
    assert wide.dtype == torch.float32 and np.array_equal(wide.numpy(), rows.astype(np.float32))
    with pytest.raises(StoreLookupError, match="no rows of table 'image'; tables: query"):
        load_table(store, "image")


@pytest.mark.parametrize("size", [1, 24 * 7, 24 * 50, 24 * 1000])
def test_blocks_of_any_size_give_the_table(store: Store, size: int) -> None:
    found = torch.full((150, 12), float("nan"))
    assert _by_blocks(store, "query", found, torch.float16, size) is found
    assert np.array_equal(found.numpy(), store.load("query").astype(np.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(store: Store) -> None:
    for dtype in (None, torch.float32):
        found = load_table(store, "query", "cuda", dtype=dtype)
        assert found.is_cuda and np.array_equal(found.float().cpu().numpy(), store.load("query").astype(np.float32))
