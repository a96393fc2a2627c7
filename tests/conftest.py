"""Fixtures that every test may use, and how the tests are shared out among processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, which torch may do before a test
os.environ.setdefault("OMP_NUM_THREADS", "1")  # test files run side by side, one a core

# Files that compile numba's loops or build the small demo, which takes longer than their tests: one process of two for all. More
# processes share them out, or the one would last longest.
TOGETHER = (
    *("tests/pipeline/training/cascade/", "tests/pipeline/training/backends/test_trainers.py", "tests/test_cli.py"),
    *("tests/pipeline/views/", "tests/pipeline/api/", "tests/test_walk", "tests/pipeline/jobs/test_presets.py"),
    *("tests/pipeline/core/test_workspace.py", "tests/pipeline/analysis/test_history.py", "tests/test_cli_words.py"),
)
REPOSITORY = Path(__file__).resolve().parent.parent


# Where durability or the calls of a commit are the subject. Elsewhere nothing waits for the disk: no test cuts the power, and
# what a killed process has written is there.
DURABLE = ("tests/cache/", "tests/hostile/", "tests/pipeline/bench/", "tests/test_cli_words.py")
_fsync = os.fsync


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    os.fsync = _fsync if item.nodeid.startswith(DURABLE) else lambda descriptor: None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file run in one process; of two processes, one has all files in ``TOGETHER``."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            together = self.numnodes <= 2 and nodeid.startswith(TOGETHER)
            return "together" if together else super()._split_scope(nodeid)

    return Scheduling(config, log)


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


WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Every other process collects from the end, and finds the files compiled that the others began with."""
    report = yield
    if isinstance(collector, pytest.Dir) and int(WORKER.removeprefix("gw") or 0) % 2:
        report.result.reverse()
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if WORKER:  # the same order in all of them
        items.sort(key=lambda item: item.path)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets: FASHION_NTM_TEST_DATA, or ``shared/data`` beside the repository."""
    folder = Path(os.environ.get("FASHION_NTM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "mt_fashioniq").is_dir():
        pytest.skip(f"no real data at {folder}: set FASHION_NTM_TEST_DATA to a folder that holds mt_fashioniq/")
    return folder
