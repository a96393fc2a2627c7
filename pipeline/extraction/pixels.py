"""Faster image preprocessing: rescaling and normalizing by table lookup, with bit-identical results.

A channel of an 8-bit image has 256 values, so the two last steps are a table, computed by the image processor. The
processor itself only does the 8-bit steps, resizing and cropping.
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
)  # (width, height): test cropping, enlarging, shrinking, padding
_BY_LEVEL = {"do_rescale": False, "do_normalize": False}
_AS_IT_IS = {"do_resize": False, "do_center_crop": False}


def levels_of(processor: Any) -> np.ndarray | None:
    """Return the output of ``processor`` for the levels 0..255 of each channel, [3, 256]; None if a table is not exact.

    The table is compared with the processor on images of several shapes. Processors with other steps than resize, crop,
    rescale and normalize (patches, masks, padding after normalizing) have none.
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
    except (TypeError, ValueError, AttributeError):  # a processor with other steps or arguments
        return None


def normalised(processor: Any, levels: np.ndarray, image: Image.Image) -> np.ndarray | None:
    """Return the pixel values [3, h, w] of one RGB image; None if the 8-bit steps of ``processor`` do not give one."""
    pixels = processor(images=[image], return_tensors="np", **_BY_LEVEL)["pixel_values"][0]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or len(pixels) != 3:
        return None
    values = np.empty(pixels.shape, levels.dtype)
    for row, plane, out in zip(levels, pixels, values, strict=True):
        row.take(plane, out=out, mode="wrap")  # no copy, unlike mode "raise"; uint8 is always in range
    return values


def resized_pixels(processor: Any, width: int, height: int) -> int:
    """Return the pixel count after the resize of a ``processor`` that scales the shorter side; 0 for a fixed size.

    For example, 100000 x 1 becomes 22400000 x 224.
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
