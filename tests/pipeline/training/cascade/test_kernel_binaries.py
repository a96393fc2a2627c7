"""What Triton's interpreter does not see: whether the kernels compile for a GPU, and fit into its registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

triton = pytest.importorskip("triton", "3.3", reason="Triton 3.3 is not installed: the extra `test` brings it on Linux")
if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").is_file():
    pytest.skip("this Triton brings no NVIDIA binaries", allow_module_level=True)

KERNELS = 8  # forms of the five kernels, for one shape
SPILLED = 64  # bytes: a few registers may go to the stack, a matrix may not


def compiled(folder: Path, *arguments: object) -> list[dict[str, Any]]:
    """What each kernel needs, in each of its forms; in a process of its own, since here Triton may interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, "-m", "tests.pipeline.training.cascade.compile_kernels", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_wide_controller_spills_nothing(tmp_path: Path) -> None:
    for needed in compiled(tmp_path, 90, "fp32", 4, 768, 4):
        assert needed["STACK"] <= SPILLED, needed


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "stages", "hidden", "slots"), [(80, 1, 7, 1), (100, 8, 256, 16)])
def test_they_compile_for_other_generations(
    capability: int, stages: int, hidden: int, slots: int, tmp_path: Path
) -> None:
    for needed in compiled(tmp_path, capability, "fp32", stages, hidden, slots):
        assert needed["STACK"] <= SPILLED, needed


@pytest.mark.slow
def test_they_compile_and_nothing_is_spilled(tmp_path: Path) -> None:
    """Five slots take eight lanes."""
    found = compiled(tmp_path, 90, "fp32,fp64", 2, 7, 5)
    assert len(found) == 2 * KERNELS
    assert all(needed["REG"] > 0 for needed in found)
    assert all(needed["STACK"] <= SPILLED for needed in found if needed["numbers"] == "fp32")


@pytest.mark.slow
@pytest.mark.timeout(1500)  # up to fifty compilations
@pytest.mark.parametrize(
    "sizes",
    [
        ("fp32", "1,2,4,8,16", 100, "4,5"),
        ("fp64", "1,2,3,8,16", 7, 4, 12),
        ("fp64", "2,3,4", 7, "1,2,5,16", 12),
        ("fp64", "2,3", "8,17", 4, "5,6"),
    ],
)
def test_they_compile_for_every_size_of_the_tables_and_of_the_equality_tests(
    sizes: tuple[Any, ...], tmp_path: Path
) -> None:
    """Slots that fill their lanes and slots that do not; in double precision what the equality tests compute."""
    for needed in compiled(tmp_path, 90, *sizes):
        assert needed["STACK"] <= SPILLED, needed
