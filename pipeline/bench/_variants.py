"""The vision tower in other forms that give nearly the same features: channels-last memory, torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.bench._stage1_parts import Parts

NAMES = ("channels-last", "compiled", "compiled, channels-last")


def variants(parts: Parts) -> dict[str, Callable[[], dict[str, float]]]:
    """Parts like the model's ceiling, one a form; each also gives "least_cosine" to the plain form's rows.

    Compiling is done here, once, and is no part of what is timed.
    """
    import torch

    towers = {"plain": parts.extractor.model.vision_model}
    towers["compiled"] = torch.compile(towers["plain"])
    plain = parts.extractor.begin("image", parts.synthetic()).numpy().astype("float64")

    def part(name: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            tower = towers["compiled" if "compiled" in name else "plain"]
            with _form(parts.extractor, tower, "channels-last" in name):
                found = parts.extractor.begin("image", parts.synthetic()).numpy().astype("float64")
                norms = (plain**2).sum(1) ** 0.5 * (found**2).sum(1) ** 0.5
                return parts.model_ceiling() | {"least_cosine": float(((plain * found).sum(1) / norms).min())}

        return run

    made = {name: part(name) for name in NAMES}
    for run in made.values():
        run()
    return made


@contextmanager
def _form(extractor: Any, tower: Any, channels_last: bool) -> Iterator[None]:
    """The extractor with ``tower`` as its vision tower, four-dimensional weights and pixels in channels-last order."""
    import torch

    model, plain = extractor.model, extractor.model.vision_model
    order = torch.channels_last if channels_last else torch.contiguous_format

    def reorder(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return given, {**named, "pixel_values": named["pixel_values"].contiguous(memory_format=order)}

    model.to(memory_format=order)
    object.__setattr__(model, "vision_model", tower)  # beside the module's own: put back below
    hook = plain.register_forward_pre_hook(reorder, with_kwargs=True) if channels_last else None
    try:
        yield
    finally:
        object.__delattr__(model, "vision_model")
        if hook is not None:
            hook.remove()
        model.to(memory_format=torch.contiguous_format)
