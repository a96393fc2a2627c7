"""Training state on disk: weights and optimizer moments as safetensors, the rest as JSON, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cache.files import replace_atomically, replacing
from cache.recovery import remove_temporaries
from manifests.errors import FashionNTMError
from manifests.identity import changed_fields, file_digest

STATE = "state.json"


@dataclass
class Progress:
    """Number of steps, the losses of the current epoch, and the mean loss of each finished epoch."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)


def save_state(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, starts: Mapping[str, Any]
) -> None:
    """Write the complete training state; a kill at any time leaves the old state or the new one.

    ``starts``: content digests of the initial weights, checked by ``load_state``. Random numbers depend on
    (seed, step), so no generator state is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for i, parameter in enumerate(trained(network)):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimiser.{i}.{key}"] = torch.as_tensor(value)
    file = folder / f"state-{progress.step}.safetensors"
    remove_temporaries(folder)  # of a killed fit
    with replacing(file) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    about = {"file": file.name, "sha256": file_digest(file), "started_from": dict(starts), **vars(progress)}
    replace_atomically(folder / STATE, json.dumps(about).encode() + b"\n")
    for old in folder.glob("state-*"):
        if old.name != file.name:
            old.unlink()


def load_state(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, starts: Mapping[str, Any]
) -> Progress:
    """Load the state in ``folder`` into ``network`` and ``optimizer``; return a new Progress if there is none.

    Raises FashionNTMError with the folder to remove when the files do not match each other, or the initial weights were
    others than ``starts``.
    """
    try:
        about: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Progress()
    try:
        if changed := changed_fields(about.pop("started_from", {}), dict(starts)):
            raise ValueError(f"it started from other weights: {'; '.join(changed)}")
        file = folder / about.pop("file")
        if file_digest(file) != about.pop("sha256"):
            raise ValueError(f"{file.name} has changed since it was written")
        tensors = load_file(file)
        network.load_state_dict(_part(tensors, "network."))
        for i, parameter in enumerate(trained(network)):
            moments = _part(tensors, f"optimiser.{i}.")
            optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in moments.items()}
        return Progress(**about)
    except Exception as error:  # JSON, safetensors and torch raise different types for invalid files
        raise FashionNTMError(
            f"the unfinished fit in {folder} cannot be resumed ({' '.join(str(error).split())[:200]}): remove that folder "
            "to fit from the start"
        ) from error


def trained(network: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters in the network's order."""
    return [p for p in network.parameters() if p.requires_grad]


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
