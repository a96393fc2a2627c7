"""Files of a model's folder: weights (safetensors only; no pickles), layouts, content digest, bounds on configured sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from manifests.errors import FashionNTMError
from manifests.kinds import LONGEST_HEADER, SAFETENSORS, kind_of
from manifests.text import read_bounded
from pipeline.extraction.images import MAX_PIXELS, one_line

SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "depth", "encoder_layers", "decoder_layers")
_MOST_LAYERS = 1000


class ModelError(FashionNTMError):
    """A model is not found, cannot be loaded, or is not trusted."""


@dataclass(frozen=True)
class Checkpoint:
    """Local files of a model. ``name``: as given by the user."""

    name: str
    path: Path
    own_code: bool = False  # the user allows the model's own Python code

    def error(self, what: str) -> ModelError:
        return ModelError(f"model {self.name!r}: {what}")

    def json(self, file: str) -> dict[str, Any]:
        """Return a JSON file of the checkpoint; {} if absent. Raises ModelError if it is malformed."""
        try:
            value = json.loads(read_bounded(self.path / file).decode())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise self.error(f"{file} cannot be read: {error}") from None
        return value if isinstance(value, dict) else {"": value}

    @property
    def weights(self) -> list[Path]:
        """Safetensors files. Raises ModelError when there are none (pickles are refused) or one is incomplete."""
        if named := self.json("config.json").get("transformers_weights"):  # transformers would load that file instead
            fix = f"give that file its usual name, {_SINGLE} or {INDEX}, and remove the key"
            raise self.error(f"config.json sets transformers_weights = {named!r}: {fix}")
        files = self._listed()
        for file in files:
            kind = kind_of(file)
            if kind.name != SAFETENSORS:
                hint = f": {kind.advice}" if kind.advice else ""
                raise self.error(f"{file.name} is {kind.name}, not {SAFETENSORS}{hint}")
            if (found := file.stat().st_size) < (wanted := _declared_size(file)):
                raise self.error(f"{file.name} is truncated, {found:,} of {wanted:,} bytes: fetch it again")
        return files

    def _listed(self) -> list[Path]:
        if (single := self.path / _SINGLE).is_file():
            return [single]
        names = shards(self)
        missing = [name for name in names if not (self.path / name).is_file()]
        if names and not missing:
            return [self.path / name for name in names]
        if missing:
            broken = "is a link to a missing file" if (self.path / missing[0]).is_symlink() else "is not there"
            fix = "the download is incomplete, fetch it again"
            raise self.error(f"{INDEX} names {missing[0]!r}, which {broken} in {self.path}: {fix}")
        if single.is_symlink():
            fix = "copy the folder with its files (cp -rL), or fetch it again"
            raise self.error(f"{_SINGLE} is a link to a missing file: {fix}")
        raise ModelError(_no_weights(self))


def shards(checkpoint: Checkpoint) -> list[str]:
    """Return the file names in the index of a sharded checkpoint, sorted; [] without one.

    Raises ModelError for a malformed index or a file outside of the folder.
    """
    weights = checkpoint.json(INDEX).get("weight_map", {})
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise checkpoint.error(f"{INDEX} has no map of tensors to files: fetch it again")
    names = sorted(set(weights.values()))
    if bad := next((n for n in names if Path(n).name != n or not n.endswith(".safetensors")), None):
        raise checkpoint.error(f"{INDEX} names {bad!r}, which is no safetensors file of its folder")
    return names


def clip_module(name: str, folder: Path) -> Path:
    """Return the subfolder of the CLIP in a sentence-transformers folder of a dual encoder; any other folder unchanged.

    Its modules.json has the one module CLIPModel. Raises ModelError if the subfolder is missing or outside.
    """
    checkpoint = Checkpoint(name, folder)
    modules = checkpoint.json("modules.json").get("")
    if not isinstance(modules, list) or len(modules) != 1 or not isinstance(modules[0], dict):
        return folder
    path = str(modules[0].get("path", ""))
    if str(modules[0].get("type", "")).rsplit(".", 1)[-1] != "CLIPModel" or not path:
        return folder
    if Path(path).name != path or not (folder / path / "config.json").is_file():
        raise checkpoint.error(f"modules.json names the folder {path!r}, which is not in it: fetch it again")
    return folder / path


def _no_weights(checkpoint: Checkpoint) -> str:
    """Return the error text for a folder without weights that can be read, with the way to convert what it has."""
    folder, name = checkpoint.path, checkpoint.name
    if loose := sorted(p.name for p in folder.glob("*.safetensors") if p.name != "adapter_model.safetensors"):
        what = f"has {loose[0]!r} ({len(loose)} safetensors in all) but no {_SINGLE} and no {INDEX}"
        return f"model {name!r} {what}: name a single file {_SINGLE}, or fetch the index of the shards"
    pickled = sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
    kinds = ", ".join(pickled[:3]) or "none of another kind either"
    return (
        f"model {name!r} has no {_SINGLE} ({kinds}). Pickled weights can run code when they are loaded, so they are "
        'refused: convert them once where you trust them, with `python -c "from transformers import AutoModel; '
        f"AutoModel.from_pretrained('{name}').save_pretrained('DIR')\"`, copy the tokenizer and processor files to DIR and "
        'give DIR, or name a revision of the hub that holds safetensors (often revision = "refs/pr/N")'
    )


def _declared_size(file: Path) -> int:
    """Return the size in bytes by a safetensors file's header; 0 if damaged, which its reader reports."""
    with open(file, "rb") as handle:
        header = min(int.from_bytes(handle.read(8), "little"), LONGEST_HEADER)
        try:
            tensors = json.loads(handle.read(header))
            ends = [about["data_offsets"][1] for name, about in tensors.items() if name != "__metadata__"]
            return 8 + header + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return 8 + header


def side_files(checkpoint: Checkpoint) -> list[Path]:
    """Return the files of a checkpoint except its weights: configuration, tokenizer, preprocessing."""
    kinds = SIDE_FILES + (("*.py",) if checkpoint.own_code else ())
    found = {p for kind in kinds for p in checkpoint.path.glob(kind) if p.name not in (INDEX, "adapter_config.json")}
    return sorted(p for p in found if p.is_file())


def refuse_layers(checkpoint: Checkpoint, config: Any, place: str = "") -> None:
    """Raise ModelError for a number of layers that no model has: each would be created before its weights are missed."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key in _LAYERS and isinstance(value, int) and value > _MOST_LAYERS:
            what = f"config.json sets {place}{key} = {value:,}"
            raise checkpoint.error(f"{what}, more than {_MOST_LAYERS:,}: fetch it again")
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
            what = f"its image processor sets {name} = {size}, above the limit of {MAX_PIXELS:,} pixels"
            raise checkpoint.error(f"{what}: fetch preprocessor_config.json again")
    try:
        found = processor(images=[Image.new("RGB", (64, 64))], return_tensors="np")
    except Exception as error:  # of any kind: the settings are of the wrong type, or contradict each other
        raise checkpoint.error(f"its image processor fails on an image ({one_line(error)})") from error
    wanted = checkpoint.json("config.json").get("vision_config")
    side = wanted.get("image_size") if isinstance(wanted, dict) else None
    shape: tuple[int, ...] = getattr(found.get("pixel_values"), "shape", ())
    sized = any(getattr(processor, step, False) for step in ("do_resize", "do_center_crop", "do_pad"))
    if sized and isinstance(side, int) and len(shape) == 4 and shape[2:] != (side, side) and not checkpoint.own_code:
        what = f"its image processor gives {shape[3]}x{shape[2]} pixels, the model reads {side}x{side}"
        raise checkpoint.error(f"{what}: take both from one download")
