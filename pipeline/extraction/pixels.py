"""An image processor whose last two steps, rescaling and normalising, are looked up: the same bits in less time.

A channel of an 8-bit image has 256 values, so what the processor makes of each is a table, taken from the processor.
Beside it only 8-bit work is left to the processor: resizing and cropping.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

_CHECKED = (
    (224, 224),
    (53, 37),
    (31, 90),
    (640, 480),
    (7, 400),
)  # width, height: to be cropped, enlarged, shrunk, padded
_BY_LEVEL = {"do_rescale": False, "do_normalize": False}
_AS_IT_IS = {"do_resize": False, "do_center_crop": False}


def levels_of(processor: Any) -> np.ndarray | None:
    """What ``processor`` makes of the levels 0..255 of each channel, [3, 256]; None where a table gives other bits.

    The table is compared with the processor itself on images of several shapes. One that does more than resize, crop,
    rescale and normalise (patches, masks, padding after normalising) has none.
    """
    if not (getattr(processor, "do_rescale", False) and getattr(processor, "do_normalize", False)):
        return None
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    try:
        found = processor(images=[ramp], return_tensors="np", **_AS_IT_IS)
        if list(found) != ["pixel_values"] or found["pixel_values"].shape != (1, 3, 16, 16):
            return None
        levels = np.ascontiguousarray(found["pixel_values"].reshape(3, 256))
        return levels if all(_same(processor, levels, size) for size in _CHECKED) else None
    except (TypeError, ValueError, AttributeError):  # a processor with steps or arguments of its own
        return None


def normalised(processor: Any, levels: np.ndarray, image: Image.Image) -> np.ndarray | None:
    """``processor``'s pixel values of one RGB image, [3, h, w]; None when its 8-bit steps did not give such an image."""
    pixels = processor(images=[image], return_tensors="np", **_BY_LEVEL)["pixel_values"][0]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or len(pixels) != 3:
        return None
    values = np.empty(pixels.shape, levels.dtype)
    for row, plane, out in zip(levels, pixels, values, strict=True):
        row.take(plane, out=out, mode="wrap")  # without a copy, unlike mode "raise"; a uint8 cannot be out of range
    return values


def resized_pixels(processor: Any, width: int, height: int) -> int:
    """Pixels after the resize of a ``processor`` that scales the shorter side; 0 where it resizes to a fixed size.

    An image of 100000 x 1 becomes one of 22400000 x 224.
    """
    size = getattr(processor, "size", None)
    short, long = (getattr(size, name, None) for name in ("shortest_edge", "longest_edge"))
    if not short or not getattr(processor, "do_resize", False):
        return 0
    scale = short / min(width, height)
    if long:
        scale = min(scale, long / max(width, height))
    return math.ceil(width * scale) * math.ceil(height * scale)


def _same(processor: Any, levels: np.ndarray, size: tuple[int, int]) -> bool:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    wanted = processor(images=[image], return_tensors="np")["pixel_values"][0]
    found = normalised(processor, levels, image)
    return found is not None and found.dtype == wanted.dtype and np.array_equal(found, wanted)
