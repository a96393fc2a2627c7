"""Products of stacked matrices: [.., I, J] @ [.., J, O] -> [.., I, O], with equal leading dimensions.

On a CPU torch computes batched products in full precision regardless of ``torch.set_float32_matmul_precision``, and
only products of two matrices in reduced precision. With reduced precision, each matrix is therefore a separate call if
its sums are long enough for that to be faster.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_LONG = 128  # minimum terms per sum: below, bfloat16 with its conversion is slower than float32


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Return left @ right, written to ``out`` if given; ``out`` may have any strides."""
    if out is None:
        out = left.new_empty(*left.shape[:-1], right.shape[-1])
    if _one_by_one(left):
        for one, other, place in _parts(2, left, right, out):
            torch.mm(one, other, out=place)
    else:
        for one, other, place in _parts(3, left, right, out):
            torch.bmm(one, other, out=place)
    return out


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add left @ right to ``total`` [.., I, O] in place."""
    if _one_by_one(left):
        for one, other, place in _parts(2, left, right, total):
            place.addmm_(one, other)
    else:
        total.view(-1, *total.shape[-2:]).baddbmm_(left.flatten(0, -3), right.flatten(0, -3))
    return total


def _one_by_one(left: Tensor) -> bool:
    reduced = torch.get_float32_matmul_precision() != "highest"
    return reduced and left.device.type == "cpu" and left.shape[-1] >= _LONG


def _parts(dims: int, *stacks: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of ``dims`` dimensions, both leading ones merged if no stack is copied, else over the shorter one."""
    if stacks[0].dim() == dims:
        yield stacks
    elif dims == 3 and all(map(_can_be_one, stacks)):
        yield tuple(stack.flatten(0, 1) for stack in stacks)
    else:
        lead = stacks[0].shape[:-2]
        shortest = lead.index(min(lead))
        for parts in zip(*(stack.unbind(shortest) for stack in stacks), strict=True):
            yield from _parts(dims, *parts)


def _can_be_one(stack: Tensor) -> bool:
    """Return whether the two leading dimensions of [I, J, .., ..] can be merged without a copy."""
    if stack.dim() != 4:
        return False
    return 1 in stack.shape[:2] or stack.stride(0) == stack.shape[1] * stack.stride(1)
