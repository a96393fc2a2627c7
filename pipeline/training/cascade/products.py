"""Products of stacked matrices: [.., I, J] @ [.., J, O] -> [.., I, O], the leading dimensions alike.

On a CPU torch computes a batched product in full precision whatever ``torch.set_float32_matmul_precision`` says, and only
the product of two matrices in the reduced one: there each matrix is then a call of its own, where sums are long enough
for that to be faster.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_LONG = 128  # terms of a sum: products of fewer take longer in bfloat16 than in float32, conversion included


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Into ``out`` where it is given, whatever its strides."""
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
    """Onto ``total`` [.., I, O], in place."""
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
    """Views of ``dims`` dimensions, as few as can be: two leading dimensions that every stack can have as one are one, and
    else the shorter is gone through."""
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
    """Whether the two leading dimensions of [I, J, .., ..] are one without a copy."""
    if stack.dim() != 4:
        return False
    return 1 in stack.shape[:2] or stack.stride(0) == stack.shape[1] * stack.stride(1)
