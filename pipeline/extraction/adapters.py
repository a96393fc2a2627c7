"""Merging of PEFT adapters (LoRA and other mergeable kinds) in a model's folder into the model's weights."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from manifests.text import on_one_line
from pipeline.extraction.checkpoint_files import Checkpoint, ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Initializations that change the base's weights: the adapter fits only the changed weights.
_MOVES_BASE = ("pissa", "olora", "corda", "loftq")


def adapter_weights(checkpoint: Checkpoint) -> Path | None:
    """Return the adapter's safetensors file; None without an adapter.

    Raises ModelError for an incomplete adapter, pickled weights, and adapters that cannot be merged.
    """
    found = sorted(path.name for path in checkpoint.path.glob("*adapter*") if path.is_file())
    config = checkpoint.json(CONFIG)
    if not config and not {WEIGHTS, "adapter_model.bin"} & set(found):
        return None
    if not config or WEIGHTS not in found:
        what = f"needs {CONFIG} and {WEIGHTS} (it has {', '.join(found)})"
        raise _refused(checkpoint, f"{what}; pickled weights are refused")
    if str(config.get("init_lora_weights", "")).lower().startswith(_MOVES_BASE) or config.get("megatron_config"):
        raise _refused(checkpoint, f"is of a kind that cannot be merged into these weights ({CONFIG})")
    return checkpoint.path / WEIGHTS


def only_adapter(name: str, folder: Path) -> str | None:
    """Return the error text for a folder with an adapter only, naming the base model; None for other folders."""
    config = Checkpoint(name, folder).json(CONFIG)
    if not config:
        return None
    base = config.get("base_model_name_or_path") or "a base that its adapter_config.json does not name"
    copy = f"copy {CONFIG} and {WEIGHTS} into a folder of that model (it is then applied)"
    merge = "merge them once with PEFT's merge_and_unload and save_pretrained, and give that folder"
    return f"model {name!r} is only an adapter for {base}: {copy}, or {merge}"


@contextlib.contextmanager
def without_adapter(checkpoint: Checkpoint) -> Iterator[Path]:
    """Yield a folder without the adapter, because transformers would load the adapter itself if PEFT is installed."""
    if adapter_weights(checkpoint) is None:
        yield checkpoint.path
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / checkpoint.path.name
        folder.mkdir()
        for entry in checkpoint.path.iterdir():
            if entry.name not in (CONFIG, WEIGHTS):
                (folder / entry.name).symlink_to(entry)
        yield folder


def merge_adapter(model: Any, checkpoint: Checkpoint) -> Any:
    """Return ``model`` (float32) with the adapter merged into its weights.

    Raises ModelError without PEFT, and when the adapter's tensors and the model's adapter layers do not match.
    """
    file = adapter_weights(checkpoint)
    if file is None:
        return model
    try:
        from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    except ImportError as error:
        raise _refused(checkpoint, f"is applied by the package peft ({error}): pip install peft") from error
    try:
        config, state = PeftConfig.from_pretrained(str(checkpoint.path)), load_file(file)
        if config.is_prompt_learning:
            raise _refused(checkpoint, f"is of type {config.peft_type.value}, which cannot be merged into the weights")
        with torch.random.fork_rng(devices=[]):  # the random initial values are all replaced
            config.base_model_name_or_path = None  # this model is the base, regardless of its name
            config.task_type = None  # its heads and methods are not used
            place = _place(model, state)
            wrapped = get_peft_model(_Holder(place, model) if place else model, config)
        unknown = set_peft_model_state_dict(wrapped, state).unexpected_keys  # type: ignore[attr-defined]
        missing = get_peft_model_state_dict(wrapped, save_embedding_layers=False).keys() - state.keys()
        if unknown or missing:
            first = f"no place for {sorted(unknown)[0]!r}" if unknown else f"no tensor for {sorted(missing)[0]!r}"
            raise _refused(checkpoint, f"does not fit {type(model).__name__}: {first}")
        merged = wrapped.merge_and_unload(safe_merge=True)
        return getattr(merged, place) if place else merged
    except ModelError:
        raise
    except Exception as error:  # wrong shapes or module names, or an adapter that PEFT cannot merge
        what = f"cannot be applied to {type(model).__name__}: {on_one_line(error, 300)}"
        raise _refused(checkpoint, what) from error


class _Holder(torch.nn.Module):
    """A model under the name that it has in its class with a head, as the adapter's tensors and patterns name it."""

    def __init__(self, place: str, model: Any):
        super().__init__()
        self.add_module(place, model)
        self.config = model.config


def _place(model: Any, state: Iterable[str]) -> str:
    """Return the name of ``model`` in the class that the adapter was trained on, such as ``model`` in
    Qwen3VLForConditionalGeneration; "" if it was trained on ``model`` itself."""
    first = {name.removeprefix("base_model.model.").partition(".")[0] for name in state}
    known = (getattr(model, "base_model_prefix", ""), "model")
    return next((name for name in known if name and first == {name} and not hasattr(model, name)), "")


def _refused(checkpoint: Checkpoint, what: str) -> ModelError:
    fix = "For the features of the base alone, give a folder without it"
    return ModelError(f"model {checkpoint.name!r} has an adapter in its folder, which {what}. {fix}")
