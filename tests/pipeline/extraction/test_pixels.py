"""Looking up normalized values gives the bits of the image processor itself, or is not done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from transformers import (
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from pipeline.extraction.images import Pixels, normalized

SIZES = [(224, 224), (300, 400), (17, 60), (61, 16), (1, 40), (40, 1), (3, 50), (50, 3), (3, 3), (1, 1), (500, 9)]
CLIP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
PROCESSORS = {
    "clip": lambda: CLIPImageProcessorPil(**CLIP),
    "clip, cropped from less": lambda: CLIPImageProcessorPil(**{**CLIP, "crop_size": {"height": 40, "width": 48}}),
    "siglip": lambda: SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    "vit": lambda: ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "blip": lambda: BlipImageProcessorPil(size={"height": 32, "width": 32}),
}


def result(function: Any) -> Any:
    """Its value, or the type of its error: odd shapes are refused by some processors."""
    try:
        return function()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_same_bits_for_every_shape(name: str) -> None:
    processor = PROCESSORS[name]()
    pixels_of = Pixels.of(processor)
    assert pixels_of is not None and pixels_of.levels.shape == (3, 256) and pixels_of.direct
    table = pixels_of.table(torch.device("cpu"), torch.float32)
    for n, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(n).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Pillow.fromarray(pixels)
        wanted = result(lambda image=image: processor(images=[image], return_tensors="np")["pixel_values"][0])
        found = result(lambda image=image: pixels_of.eight_bit(image))
        if isinstance(wanted, type):
            assert found is wanted
        else:
            values = normalized(torch.from_numpy(found[None]), table)[0].numpy()
            assert values.dtype == wanted.dtype and values.tobytes() == wanted.tobytes()


class Padded(CLIPImageProcessorPil):
    """Writes a frame of zeros after normalizing."""

    def preprocess(self, *args: Any, **how: Any) -> Any:
        found = super().preprocess(*args, **how)
        found["pixel_values"][..., 0] = 0
        return found


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(**CLIP, do_normalize=False),
        CLIPImageProcessorPil(**CLIP, do_rescale=False),
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
        Padded(**CLIP),
        object(),
    ],
    ids=["no normalizing", "no rescaling", "patches and masks", "a frame of its own", "no image processor"],
)
def test_no_table_where_it_would_not_say_the_same(processor: Any) -> None:
    assert Pixels.of(processor) is None
