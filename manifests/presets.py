"""Presets: named options of a memory model, usable wherever a memory model is named (``--model cm_ntm+``).

A run of a preset is a run of its model with these options: run ids, folders and results do not hold the preset's name.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import Field

from manifests.load import read_toml, shipped
from manifests.options import parse_file
from manifests.schema import Frozen


class Preset(Frozen):
    """Options and training options of ``model``, which replace those of a run spec."""

    model: str
    title: str
    options: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)


@lru_cache(maxsize=1)
def presets() -> dict[str, Preset]:
    """Return the presets shipped with the project, by name. Raises ManifestError for a wrong file."""
    return {name: parse_file(Preset, read_toml(path), str(path)) for name, path in shipped("presets").items()}


def model_named(name: str) -> str:
    """Return the memory model of a preset; another name unchanged."""
    preset = presets().get(name)
    return preset.model if preset else name
