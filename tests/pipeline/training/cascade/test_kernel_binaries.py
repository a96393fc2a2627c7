"""What Triton's interpreter does not see: whether the kernels compile for a GPU, and fit into its registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

triton = pytest.importorskip("triton", "3.3", reason="Triton 3.3 is not installed: the extra `test` brings it on Linux")
if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").is_file():
    pytest.skip("this Triton brings no NVIDIA binaries", allow_module_level=True)

KERNELS = 8  # forms of the five kernels, for one shape
SPILLED = 64  # bytes: a few registers may go to the stack, a matrix may not
# compute capability : numbers : C : H : N : M, each end of each size at least once, for the H100 (9.0) in both precisions
WHOLE = (
    "90:fp32:4:100:4:768",  # the tables' sizes
    "90:fp64:2:7:5:12",  # the equality tests'; five slots take eight lanes
    "80:fp32:1:7:1:768",  # the smallest, on an A100
    "100:fp32:8:256:16:768",  # the largest, on a B200
)
STAGES = (
    "90:fp32:4:768:4:",
    "90:fp32:16:100:5:",
    "90:fp64:16:17:16:",
    "90:fp64:1:7:1:",
)  # without the memories' kernels


@pytest.mark.slow
@pytest.mark.timeout(1500)  # some forty compilations
def test_they_compile_and_nothing_is_spilled(tmp_path: Path) -> None:
    """Representative sizes: slots that fill their lanes and slots that do not, one and many stages, narrow and wide
    controllers, every kernel with every flag.

    Left out: the other sizes between these (C is the bound of a loop, and H, N and M are rounded up to powers of two),
    every pair of sizes, double precision on other GPUs and with the memories' published width.

    Compiled in a process of its own, since here Triton may interpret.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.pipeline.training.cascade.compile_kernels", *WHOLE, *STAGES]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == KERNELS * len(WHOLE) + 2 * len(STAGES)
    for needed in found:
        assert needed["REG"] > 0 and needed["STACK"] <= SPILLED, needed
