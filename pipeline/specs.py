"""Checks every named part of a run spec against its module's options, and reports all problems at once."""

from __future__ import annotations

from manifests.datasets import datasets
from manifests.errors import Problems, nearest
from manifests.options import parse_options
from manifests.registry import Registry
from manifests.schema import Component, RunSpec, Training
from pipeline.composition.request import composer_request
from pipeline.extraction.extractors import extractors
from pipeline.training.losses import losses
from pipeline.training.models import models


def check_components(spec: RunSpec) -> None:
    """Raise ManifestError with every unknown part, unknown key and wrong value in ``spec``."""
    problems = Problems(spec.name)
    _check(datasets, spec.dataset, "dataset", problems)
    _check(extractors, spec.extractor, "extractor", problems)
    composer_request(spec, problems)
    for name, options in spec.models.items():
        own = {key: value for key, value in options.items() if key != "training"}
        _check(models, Component(name=name, **own), f"models.{name}", problems)
        if "training" in options:
            own_training = parse_options(Training, options["training"], spec.name, f"models.{name}.training", problems)
            if own_training is not None:
                _check(losses, own_training.loss, f"models.{name}.training.loss", problems)
    _check(losses, spec.training.loss, "training.loss", problems)
    if spec.training.early_stopping and not spec.validation.fraction:
        problems.add(
            "key training.early_stopping", "needs sessions to validate on", "set validation.fraction, e.g. 0.1"
        )
    problems.raise_if_any()


def _check(registry: Registry, component: Component, place: str, problems: Problems) -> None:
    if component.name not in registry.names():
        problems.add(
            f"key {place}", f"unknown {registry.kind} {component.name!r}", nearest(component.name, registry.names())
        )
    else:
        parse_options(registry.get(component.name).Options, component.options, problems.file, place, problems)
