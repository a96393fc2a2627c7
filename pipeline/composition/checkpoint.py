"""Fitted composers on disk: ``composer.safetensors``, its sidecar ``composer.json``, and a checksum file (seal)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from cache.files import replace_atomically
from cache.seal import check_seal, write_seal
from manifests.errors import FashionNTMError, IncompleteError
from manifests.identity import file_digest
from manifests.options import valid_options
from manifests.shapes import misfit
from manifests.text import on_one_line
from pipeline.composition.composers import composers
from pipeline.composition.composers.base import Composer
from pipeline.composition.composers.combiner import Combiner

WEIGHTS, SIDECAR = "composer.safetensors", "composer.json"
KIND = "composer"
COMPOSERS = "composers"  # <store>/composers/<key>/, and fold-<k>/ in it
FIT_AGAIN = "run `fit-composer` or `run` on its spec, which fits it again"


def save_composer(folder: Path, composer: Composer, record: dict[str, Any]) -> None:
    """Write the composer to ``folder`` and seal it."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({name: value.contiguous() for name, value in composer.state_dict().items()})
    replace_atomically(folder / WEIGHTS, weights)
    about = {"name": composer.name, "version": composer.version, "options": composer.options.model_dump()}
    about |= {"image_dim": composer.image_dim, "text_dim": composer.text_dim}
    about |= {"weights": hashlib.sha256(weights).hexdigest(), **record}
    replace_atomically(folder / SIDECAR, (json.dumps(about, indent=2) + "\n").encode())
    write_seal(folder, KIND, _name(folder) or folder.name, [SIDECAR, WEIGHTS])


def _name(folder: Path) -> str | None:
    """Return ``<key>`` or ``<key>/fold-<k>`` of a composer in a store; None elsewhere, where folders may be moved."""
    if folder.parent.name == COMPOSERS:
        return folder.name
    return f"{folder.parent.name}/{folder.name}" if folder.parent.parent.name == COMPOSERS else None


def fold_folder(folder: Path, fold: int) -> Path:
    return folder / f"fold-{fold}"


def fitted(folder: Path, folds: int = 0) -> bool:
    """Return whether a composer and the heads of ``folds`` folds can be loaded from ``folder``; False if damaged."""
    try:
        for place in (folder, *(fold_folder(folder, fold) for fold in range(folds))):
            load_composer(place)
    except FashionNTMError:
        return False
    return True


def weights_digest(path: Path) -> str:
    """Return the SHA-256 of a composer's weights, from a folder of ``save_composer`` or a published file."""
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise IncompleteError(f"no fitted composer at {path}: check composer.weights")
    return file_digest(file)


def load_composer(folder: Path) -> tuple[Composer, dict[str, Any]]:
    """Return the composer in eval mode, and its sidecar.

    ``folder`` may be a file with CLIP4CIR's published combiner. Raises IncompleteError when there is no composer, and
    FashionNTMError when the folder does not match its seal, or the weights do not match the sidecar.
    """
    if folder.is_file():
        return _published(folder)
    check_seal(folder, KIND, _name(folder), FIT_AGAIN)
    try:
        about = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        kind = composers.get(about["name"], str(folder / SIDECAR), "key name")
        options = valid_options(kind.Options, about["options"], str(folder / SIDECAR), "options")
        composer = kind(options, about["image_dim"], about["text_dim"])
        if (found := file_digest(folder / WEIGHTS)) != about["weights"]:
            what = f"sha256 {found[:12]} is not the recorded {about['weights'][:12]}"
            raise FashionNTMError(f"{folder / WEIGHTS}: {what}: {FIT_AGAIN}")
        weights = load_file(folder / WEIGHTS)
        if why := misfit(composer.state_dict(), weights):
            raise FashionNTMError(f"{folder / WEIGHTS}: {why}; {FIT_AGAIN}")
        composer.load_state_dict(weights)
    except FileNotFoundError as error:
        raise IncompleteError(f"no fitted composer in {folder}: run fit-composer") from error
    except FashionNTMError:
        raise
    except (KeyError, ValueError, TypeError, RecursionError, SafetensorError, RuntimeError) as error:
        what = f"does not hold a composer this version can read: {error!r}"
        raise FashionNTMError(f"{folder} {what}; {FIT_AGAIN}") from error
    return composer.eval(), about


def _published(file: Path) -> tuple[Composer, dict[str, Any]]:
    """Return CLIP4CIR's published combiner from a torch file {"Combiner": weights}; only tensors are unpickled."""
    try:
        composer = Combiner.published(torch.load(file, map_location="cpu", weights_only=True)["Combiner"])
    except Exception as error:  # unpickling and loading raise many types; all mean "another kind of file"
        fix = 'a torch file with a state dict under "Combiner" is needed, or a folder made by fit-composer'
        raise FashionNTMError(f"{file} is no published combiner ({on_one_line(repr(error))}): {fix}") from error
    about = {"name": "combiner", "options": composer.options.model_dump(), "weights": file_digest(file)}
    return composer.eval(), about
