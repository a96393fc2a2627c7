"""Losses by file name: cosines of a turn's sessions with candidates in, one loss each out. One class per file."""

from __future__ import annotations

from manifests.options import valid_options
from manifests.registry import Registry
from manifests.schema import Component
from pipeline.training.losses.base import Loss, turnwise_cross_entropy

losses: Registry[Loss] = Registry("pipeline.training.losses", Loss, "loss")  # type: ignore[type-abstract]


def build_loss(component: Component) -> Loss:
    """Build the loss of ``[training.loss]``. Raises ManifestError, with the nearest name, if one is unknown."""
    kind = losses.get(component.name, "", "key training.loss")
    return kind(valid_options(kind.Options, component.options, "loss", "training.loss"))


__all__ = ["Loss", "build_loss", "losses", "turnwise_cross_entropy"]
