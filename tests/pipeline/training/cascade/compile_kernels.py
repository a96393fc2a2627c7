"""Compile the kernels for a GPU that need not be there: ``python -m tests.pipeline.training.cascade.compile_kernels 90
fp32,fp64 1,4 100 4,5 12,768`` (compute capability, numbers, C, H, N, M, each but the first a list; M is 768 if it is left
out) prints what each needs, as JSON, or ends in the first one's error. Not in Triton's interpreter."""

from __future__ import annotations

import itertools
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

WIDTH = "768"  # D and M of the published sizes
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def binary(kernel: Any, sizes: dict[str, int], numbers: str, capability: int) -> bytes:
    """As a launch with aligned arrays of ``numbers`` ("fp32", "fp64") compiles it."""
    options = {name: sizes[name] for name in ("num_warps", *FUSED)}
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


def forms(
    stages: list[int], hidden: list[int], slots: list[int], widths: list[int]
) -> Iterator[tuple[Any, dict[str, int]]]:
    """Every kernel in each of its forms, with what it is compiled for: those of the stages know no M, those of the memories
    neither C nor H."""
    for n in slots:
        for c, h in itertools.product(stages, hidden):
            chain = sizes(Shape(c, dim=1, slots=n, width=1, hidden=h))
            yield from ((forward_turn, chain), (backward_turn, chain))
        for width, flag in itertools.product(widths, (0, 1)):
            memory = memory_sizes(Shape(1, dim=1, slots=n, width=width, hidden=1))
            yield from ((k, memory | {"ALIKE": flag}) for k in (write_memory, write_memory_backward))
            yield gather_memory, memory | {"WROTE": flag}


def main(capability: str, numbers: str, stages: str, hidden: str, slots: str, widths: str = WIDTH) -> None:
    listed = ([int(size) for size in sizes.split(",")] for sizes in (stages, hidden, slots, widths))
    found = []
    for number, (kernel, constants) in itertools.product(numbers.split(","), forms(*listed)):
        try:
            needed = resources(binary(kernel, constants, number, int(capability)))
        except Exception as error:
            raise SystemExit(f"{kernel.__name__} {number} {constants}: {error}") from error
        found.append({"kernel": kernel.__name__, "numbers": number, **constants, **needed})
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
