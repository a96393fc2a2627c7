"""Composers, one per module: an image embedding and a feedback embedding are combined into one query feature."""

from manifests.registry import Registry
from pipeline.composition.composers.base import Composer

composers: Registry[Composer] = Registry("pipeline.composition.composers", Composer, "composer")  # type: ignore[type-abstract]
