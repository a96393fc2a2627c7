"""A fitted composer on disk: ``composer.safetensors`` and its readable sidecar ``composer.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from manifests.errors import FashionNTMError, IncompleteError, Problems
from manifests.identity import file_digest
from manifests.options import parse_options
from pipeline.composition.composers import composers
from pipeline.composition.composers.base import Composer
from pipeline.composition.composers.combiner import Combiner

WEIGHTS, SIDECAR = "composer.safetensors", "composer.json"


def save_composer(folder: Path, composer: Composer, record: dict[str, Any]) -> None:
    """Write the composer to ``folder``. The sidecar comes last, so a folder with a sidecar is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (WEIGHTS + ".tmp")
    save_file({name: value.contiguous() for name, value in composer.state_dict().items()}, temporary)
    temporary.replace(folder / WEIGHTS)
    about = {
        "name": type(composer).__module__.rsplit(".", 1)[-1],
        "version": composer.version,
        "options": composer.options.model_dump(),
        "image_dim": composer.image_dim,
        "text_dim": composer.text_dim,
        "weights": file_digest(folder / WEIGHTS),
        **record,
    }
    temporary = folder / (SIDECAR + ".tmp")
    temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / SIDECAR)


def weights_digest(path: Path) -> str:
    """SHA-256 of a composer's weights: of a folder as ``save_composer`` writes it, or of one published file."""
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise IncompleteError(f"no fitted composer at {path}: check composer.weights")
    return file_digest(file)


def load_composer(folder: Path) -> tuple[Composer, dict[str, Any]]:
    """The composer in eval mode, and its sidecar.

    ``folder`` may be a file of CLIP4CIR, whose combiner is read. Raises IncompleteError when there is none,
    FashionNTMError when weights and sidecar do not belong together.
    """
    if folder.is_file():
        return _published(folder)
    try:
        about = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        kind = composers.get(about["name"], str(folder / SIDECAR), "key name")
        problems = Problems(folder / SIDECAR)
        options = parse_options(kind.Options, about["options"], str(folder / SIDECAR), "options", problems)
        problems.raise_if_any()
        composer = kind(options, about["image_dim"], about["text_dim"])
        found = file_digest(folder / WEIGHTS)
        if found != about["weights"]:
            raise FashionNTMError(
                f"{folder / WEIGHTS}: sha256 {found[:12]} is not the recorded {about['weights'][:12]}; fit again"
            )
        composer.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError as error:
        raise IncompleteError(f"no fitted composer in {folder}: run fit-composer") from error
    except (KeyError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        raise FashionNTMError(
            f"{folder} does not hold a composer this version can read: {error!r}; fit again"
        ) from error
    return composer.eval(), about


def _published(file: Path) -> tuple[Composer, dict[str, Any]]:
    """A combiner as CLIP4CIR publishes it: a torch file with {"Combiner": weights}; nothing but tensors is unpickled."""
    try:
        composer = Combiner.published(torch.load(file, map_location="cpu", weights_only=True)["Combiner"])
    except Exception as error:  # unpickling and shapes fail in many ways; all mean "another kind of file"
        raise FashionNTMError(
            f"{file} is no published combiner ({' '.join(repr(error).split())[:200]}): a torch file with a state dict under "
            '"Combiner" is needed, or a folder made by fit-composer'
        ) from error
    about = {"name": "combiner", "options": composer.options.model_dump(), "weights": file_digest(file)}
    return composer.eval(), about
