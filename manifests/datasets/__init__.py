"""Datasets, one module each: convert the user's files to sessions, a catalog and galleries."""

from manifests.datasets.base import DatasetSource
from manifests.registry import Registry

datasets: Registry[DatasetSource] = Registry("manifests.datasets", DatasetSource, "dataset")  # type: ignore[type-abstract]
