"""One module a dataset: the user's files become sessions, a catalogue and galleries."""

from manifests.datasets.base import DatasetSource
from manifests.registry import Registry

datasets: Registry[DatasetSource] = Registry("manifests.datasets", DatasetSource, "dataset")
