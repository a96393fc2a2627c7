"""Compile the kernels for a GPU that need not be there: ``python -m tests.pipeline.training.cascade.compile_kernels
90:fp32:4:100:4:768 90:fp64:2:7:5:`` (compute capability, numbers, C, H, N, M; without M the kernels of the stages alone)
prints what each needs, as JSON, or ends in the first one's error. Not in Triton's interpreter."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.training.cascade.kernels.memory import gather_memory, write_memory, write_memory_backward
from pipeline.training.cascade.kernels.stages import backward_turn, forward_turn
from pipeline.training.cascade.parameters import Shape
from pipeline.training.cascade.turn_triton import FUSED, memory_sizes, sizes

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def binary(kernel: Any, sizes: dict[str, int], numbers: str, capability: int) -> bytes:
    """As a launch with aligned arrays of ``numbers`` ("fp32", "fp64") compiles it."""
    options = {name: sizes[name] for name in ("num_warps", *FUSED)}
    constants = {name: value for name, value in sizes.items() if name not in options}
    kinds = {name: f"*{numbers}" for name in kernel.arg_names}
    kinds |= {name: "i32" for name in kinds if name in ("B", "T", "length") or re.search("_[cb]$", name)}
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


def forms(stages: int, hidden: int, slots: int, width: int | None) -> Iterator[tuple[Any, dict[str, int]]]:
    """Every kernel in each of its forms, with what it is compiled for: those of the stages know no M, those of the memories
    neither C nor H."""
    chain = sizes(Shape(stages, dim=1, slots=slots, width=1, hidden=hidden))
    yield from ((forward_turn, chain), (backward_turn, chain))
    for flag in (0, 1) if width else ():
        memory = memory_sizes(Shape(1, dim=1, slots=slots, width=width, hidden=1))
        yield from ((k, memory | {"ALIKE": flag}) for k in (write_memory, write_memory_backward))
        yield gather_memory, memory | {"WROTE": flag}


def main(*cases: str) -> None:
    found = []
    for case in cases:
        capability, numbers, *shape = case.split(":")
        for kernel, constants in forms(*(int(size) if size else None for size in shape)):
            try:
                needed = resources(binary(kernel, constants, numbers, int(capability)))
            except Exception as error:
                raise SystemExit(f"{kernel.__name__} {case} {constants}: {error}") from error
            found.append({"case": case, "kernel": kernel.__name__, "numbers": numbers, **constants, **needed})
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
