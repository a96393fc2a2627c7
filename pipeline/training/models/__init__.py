"""Memory models by file name: f_qry(1..N) in, f'_qry(1..N) out. To add a model, add a file with one class."""

from __future__ import annotations

from typing import Any

from manifests.options import valid_options
from manifests.presets import model_named, presets
from manifests.registry import Registry
from manifests.schema import Frozen
from pipeline.training.determinism import derive_seed, seeded
from pipeline.training.models.base import MemoryModel

models: Registry[MemoryModel] = Registry("pipeline.training.models", MemoryModel, "memory model")  # type: ignore[type-abstract]


def model_options(name: str, options: dict[str, Any], file: str = "") -> tuple[type[MemoryModel], Frozen]:
    """Return class and validated options of a model. Raises ManifestError, with the nearest name, if one is unknown."""
    model = models.get(name, file, f"key models.{name}")
    return model, valid_options(model.Options, options, file or "memory model", f"models.{name}")


def model_names() -> tuple[str, ...]:
    return (*models.names(), *presets())


def model_class(name: str) -> type[MemoryModel]:
    """Return the class of a memory model or preset. Raises ManifestError with the nearest name."""
    return models.get(model_named(name))


def model_title(name: str) -> str:
    """Return the title of a memory model or preset, for tables."""
    preset = presets().get(name)
    return preset.title if preset else models.get(name).title


def build_model(name: str, options: dict[str, Any], dim: int, seed: int = 0) -> MemoryModel:
    """Build model ``name`` for features of width ``dim``, initialized from ``seed``. Raises as ``model_options``."""
    model, parsed = model_options(name, options)
    with seeded(derive_seed(seed, "init")):
        return model(parsed, dim)


def is_fitted(name: str, options: dict[str, Any]) -> bool:
    """Return whether a model needs train sessions, for training or to choose an unset alpha."""
    own = {key: value for key, value in options.items() if key != "training"}
    kind, parsed = model_options(model_named(name), own)
    return kind.trainable or getattr(parsed, "alpha", 0) is None
