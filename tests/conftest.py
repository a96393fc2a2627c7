"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, which torch may do before a test
os.environ.setdefault("OMP_NUM_THREADS", "1")  # test files run side by side, one a core

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays: the collector need not look at half a million objects again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets: FASHION_NTM_TEST_DATA, or ``shared/data`` beside the repository."""
    folder = Path(os.environ.get("FASHION_NTM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "mt_fashioniq").is_dir():
        pytest.skip(f"no real data at {folder}: set FASHION_NTM_TEST_DATA to a folder that holds mt_fashioniq/")
    return folder
