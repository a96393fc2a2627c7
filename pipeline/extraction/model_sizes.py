"""Bounds on the numbers in a model's configuration files, and a trial of its image processor."""

from __future__ import annotations

from typing import Any

from PIL import Image

from pipeline.extraction.checkpoint_files import Checkpoint, ModelError
from pipeline.extraction.images import MAX_PIXELS

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "depth", "encoder_layers", "decoder_layers")
_MOST_LAYERS = 1000


def refuse_layers(checkpoint: Checkpoint, config: Any, place: str = "") -> None:
    """Raise ModelError for a number of layers that no model has: each would be created before its weights are missed."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key in _LAYERS and isinstance(value, int) and value > _MOST_LAYERS:
            raise ModelError(
                f"model {checkpoint.name!r}: config.json sets {place}{key} = {value:,}, more than {_MOST_LAYERS:,}: fetch it again"
            )
        refuse_layers(checkpoint, value, f"{place}{key}.")


def try_processor(checkpoint: Checkpoint, processor: Any) -> None:
    """Raise ModelError for a size beyond that of any accepted image or other than the model's, and for settings that
    fail on every image."""
    by_area = hasattr(processor, "merge_size")  # edges are numbers of pixels in Qwen-VL's
    for name in ("size", "crop_size", "pad_size"):
        size = dict(getattr(processor, name, None) or {})
        edges = {k: v for k, v in size.items() if isinstance(v, int)}
        short = edges.get("shortest_edge", 0)
        pixels = max(edges.get("height", 0) * edges.get("width", 0), short if by_area else short**2)
        if pixels > MAX_PIXELS:
            raise ModelError(
                f"model {checkpoint.name!r}: its image processor sets {name} = {size}, above the limit of {MAX_PIXELS:,} "
                "pixels: fetch preprocessor_config.json again"
            )
    try:
        found = processor(images=[Image.new("RGB", (64, 64))], return_tensors="np")
    except Exception as error:  # of any kind: the settings are of the wrong type, or contradict each other
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"model {checkpoint.name!r}: its image processor fails on an image ({text})") from error
    wanted = checkpoint.json("config.json").get("vision_config")
    side = wanted.get("image_size") if isinstance(wanted, dict) else None
    shape: tuple[int, ...] = getattr(found.get("pixel_values"), "shape", ())
    sized = any(getattr(processor, step, False) for step in ("do_resize", "do_center_crop", "do_pad"))
    if sized and isinstance(side, int) and len(shape) == 4 and shape[2:] != (side, side) and not checkpoint.own_code:
        raise ModelError(
            f"model {checkpoint.name!r}: its image processor gives {shape[3]}x{shape[2]} pixels, the model reads "
            f"{side}x{side}: take both from one download"
        )
