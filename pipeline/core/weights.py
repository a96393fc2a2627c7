"""Loading of weights into a module, with an error that names the tensors that do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set all parameters and buffers of ``module``. Raises ValueError (see ``misfits``) unless names and shapes match."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    shapes = [(n, found[n], expected[n]) for n in expected if n in found and found[n] != expected[n]]
    lines = [misfits(shapes)] if shapes else []
    lines += [f"{_some(expected.keys() - found.keys())} absent"] if expected.keys() - found.keys() else []
    lines += [f"{_some(found.keys() - expected.keys())} unknown"] if found.keys() - expected.keys() else []
    if lines:
        raise ValueError("; ".join(lines))
    module.load_state_dict(dict(weights))


def misfits(shapes: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> str:
    """Return one line for tensors (name, shape in the file, shape by the configuration): the first, and their count."""
    every = sorted(shapes)
    name, found, expected = every[0]
    more = f", and {len(every) - 1:,} more tensors do not fit" if len(every) > 1 else ""
    return f"tensor {name!r} is {list(found)} in the file and {list(expected)} by the configuration{more}"


def _some(names: Iterable[str]) -> str:
    every = sorted(names)
    return f"tensor {every[0]!r}" + (f" and {len(every) - 1:,} more are" if len(every) > 1 else " is")
