"""Single-turn models, one per module. A new file adds an extractor."""

from __future__ import annotations

from manifests.options import valid_options
from manifests.registry import Registry
from manifests.schema import RunSpec
from pipeline.core.device import resolve_device
from pipeline.extraction.extractors.base import Extractor

extractors: Registry[Extractor] = Registry("pipeline.extraction.extractors", Extractor, "extractor")  # type: ignore[type-abstract]


def load_extractor(spec: RunSpec, device: str = "auto") -> Extractor:
    """Load the extractor of ``spec`` on ``device`` (auto: the first available of CUDA, MPS, CPU).

    Raises ManifestError for an unknown extractor or option (with the nearest name), DeviceError, and ModelError when
    the model cannot be found or loaded.
    """
    family = extractors.get(spec.extractor.name, spec.name, "key extractor.name")
    options = valid_options(family.Options, spec.extractor.options, spec.name, "extractor")
    return family(options, resolve_device(device))
