"""Compile the kernels for a GPU that need not be there: ``python -m tests.pipeline.training.fast.compile_kernels 90 fp32
4 100 4`` (compute capability, numbers, C, H, N; M is 768) prints what each needs, as JSON. Not in Triton's interpreter."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.training.fast.kernels.memory import gather_memory, write_memory, write_memory_backward
from pipeline.training.fast.kernels.stages import backward_turn, forward_turn
from pipeline.training.fast.parameters import Shape
from pipeline.training.fast.turn_kernel import memory_sizes, sizes

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def binary(kernel: Any, sizes: dict[str, int], numbers: str, capability: int) -> bytes:
    """As a launch with aligned arrays of ``numbers`` ("fp32", "fp64") compiles it."""
    options = {"num_warps": sizes["num_warps"]}
    constants = {name: value for name, value in sizes.items() if name not in options}
    kinds = {name: f"*{numbers}" for name in kernel.arg_names}
    kinds |= {name: "i32" for name in kinds if name in ("B", "length") or re.search("_[kcb]$", name)}
    kinds |= dict.fromkeys(constants, "constexpr")
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    aligned = {places[name]: [["tt.divisibility", 16]] for name, kind in kinds.items() if kind.startswith("*")}
    source = ASTSource(kernel, kinds, {places[name]: value for name, value in constants.items()}, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack, onto which registers that do not fit are spilled."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run(
            [BINARIES / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", shown)}


if __name__ == "__main__":
    capability, numbers, stages, hidden, slots = sys.argv[1:]
    shape = Shape(int(stages), dim=768, slots=int(slots), width=768, hidden=int(hidden))
    kernels = [(kernel, sizes(shape)) for kernel in (forward_turn, backward_turn)]
    for flag in (0, 1):
        kernels += [(k, memory_sizes(shape) | {"ALIKE": flag}) for k in (write_memory, write_memory_backward)]
        kernels += [(gather_memory, memory_sizes(shape) | {"WROTE": flag})]
    print(json.dumps([resources(binary(kernel, constants, numbers, int(capability))) for kernel, constants in kernels]))
