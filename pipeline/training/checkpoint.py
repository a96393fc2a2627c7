"""Checkpoints of trained memory models: weights in ``model.safetensors``, their description in ``model.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from cache.files import replace_atomically, write_json
from cache.seal import SealError, check_seal
from manifests.errors import IncompleteError
from manifests.identity import file_digest
from manifests.options import valid_options
from manifests.shapes import misfit
from pipeline.training.errors import CheckpointError
from pipeline.training.models import MemoryModel, models

WEIGHTS, SIDECAR = "model.safetensors", "model.json"
FORMAT = 1
RUN = "run"  # the kind of a run folder's seal
TRAIN_AGAIN = "run `train` on its spec, which trains this run again"


class MissingCheckpointError(IncompleteError, FileNotFoundError):
    """The folder contains no trained model."""


def save_model(folder: Path, model: MemoryModel, last: Callable[[], object] = lambda: None) -> None:
    """Write the model to ``folder``, weights first, so that a sidecar always describes existing weights.

    ``last`` is called just before each file is published; the file is not published if ``last`` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    data = save(weights)
    replace_atomically(folder / WEIGHTS, data, last=last)
    dtype = str(next((v.dtype for v in weights.values() if v.is_floating_point()), torch.float32)).split(".")[-1]
    sidecar = {"format": FORMAT, "model": model.name, "version": model.version}
    sidecar |= {"options": model.options.model_dump(mode="json"), "dim": model.dim, "dtype": dtype}
    sidecar |= {"sha256": hashlib.sha256(data).hexdigest(), "torch": str(torch.__version__)}
    write_json(folder / SIDECAR, sidecar, last=last)


def load_model(folder: Path, device: torch.device | str = "cpu") -> MemoryModel:
    """Load the model saved in ``folder``, in eval mode, with the same outputs as the saved model.

    Raises MissingCheckpointError if there is none, CheckpointError, naming the difference, if the folder differs from
    its seal or the weights have another version or shape.
    """
    path = folder / SIDECAR
    try:
        check_seal(folder, RUN, folder.name, TRAIN_AGAIN)
    except SealError as error:
        raise CheckpointError(str(error)) from None
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        name, version, found = sidecar["model"], sidecar["version"], sidecar["format"]
        options, dim, dtype = sidecar["options"], sidecar["dim"], sidecar["dtype"]
        digest = sidecar["sha256"]
    except FileNotFoundError:
        raise MissingCheckpointError(f"{folder}: no trained model ({SIDECAR} is absent); run `train` first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint description ({error!r}); train this run again") from error
    if found != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {found}, this program reads {FORMAT}; train this run again")
    cls = models.get(name, str(path), "key model")
    if version != cls.version:
        what = f"weights of {name} version {version}, this program has version {cls.version}"
        raise CheckpointError(f"{path}: {what}; train this run again")
    weights_path = folder / WEIGHTS
    if not weights_path.is_file() or file_digest(weights_path) != digest:
        raise CheckpointError(f"{weights_path}: absent, or not the file that {SIDECAR} describes; train this run again")
    model = cls(valid_options(cls.Options, options, str(path), "options"), dim).to(getattr(torch, dtype))
    try:
        weights = load_file(weights_path)
        if why := misfit(model.state_dict(), weights):
            raise ValueError(why)
        model.load_state_dict(weights)
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{weights_path}: {error}; train this run again") from error
    return model.to(device).eval()
