"""Check every named component of a run spec against its options, and report all problems at once."""

from __future__ import annotations

from collections.abc import Sequence

from manifests.datasets import datasets
from manifests.errors import IncompleteError, ManifestError, Problems, nearest
from manifests.options import parse_options
from manifests.presets import model_named
from manifests.registry import Registry
from manifests.schema import Component, Dataset, RunSpec, Training
from manifests.validation import split_validation
from pipeline.composition.request import DEFAULT, composer_request, parse_composer
from pipeline.extraction.extractors import extractors
from pipeline.training.losses import losses
from pipeline.training.models import is_fitted, models


def check_components(spec: RunSpec) -> None:
    """Raise ManifestError listing every unknown component, unknown key and invalid value in ``spec``."""
    problems = Problems(spec.name)
    _check(datasets, spec.dataset, "dataset", problems)
    _check(extractors, spec.extractor, "extractor", problems)
    parse_composer(spec.composer or DEFAULT, problems)
    for name, options in spec.models.items():
        own = {key: value for key, value in options.items() if key != "training"}
        _check(models, Component(name=model_named(name), **own), f"models.{name}", problems)
        if "training" in options:
            own_training = parse_options(Training, options["training"], spec.name, f"models.{name}.training", problems)
            if own_training is not None:
                _check(losses, own_training.loss, f"models.{name}.training.loss", problems)
    _check(losses, spec.training.loss, "training.loss", problems)
    if spec.training.early_stopping and not spec.validation.fraction:
        fix = "set validation.fraction, e.g. 0.1"
        problems.add("key training.early_stopping", "needs sessions to validate on", fix)
    problems.raise_if_any()


def require_sessions(spec: RunSpec, dataset: Dataset) -> None:
    """Raise IncompleteError, naming what a catalog is for, if ``dataset`` has no sessions."""
    if not dataset.sessions:
        raise IncompleteError(
            f"dataset '{dataset.name}' has no sessions, so there is nothing to train, evaluate or compare: search it "
            f"with `{spec.command('search', '--text', 'in navy')}`, or in the browser with `{spec.command('serve')}`"
        )


def check_sessions(spec: RunSpec, dataset: Dataset, only: Sequence[str] = ()) -> None:
    """Raise ManifestError if ``dataset`` has no sessions for a fitted component of the checked ``spec``.

    ``only``: the models that will run; empty: all of the spec."""
    _check_dialogs(spec, only)
    request = composer_request(spec)
    fitted = [f"composer {request.name}"] if request.needs_fitting else []
    run = {name: options for name, options in spec.models.items() if name in (only or spec.models)}
    fitted += [f"model {name}" for name, options in run.items() if is_fitted(name, options)]
    if not fitted:
        return
    problems = Problems(spec.name)
    train = dataset.split("train")
    if not train:
        fix = "add train sessions, or leave these out: last, avg, cat and ewma with alpha need none"
        problems.add("", f"no train sessions to fit {', '.join(fitted)} on", fix, file=f"dataset {dataset.name}")
        problems.raise_if_any()
    try:
        left, _ = split_validation(train, **dict(spec.validation))
    except ManifestError as error:
        problems.found += error.problems
    else:
        if len(left) < 2:
            what = f"{len(left)} of {len(train)} train sessions left to fit {', '.join(fitted)} on"
            problems.add("", what, "in-batch negatives need at least 2", file=f"dataset {dataset.name}")
    problems.raise_if_any()


def _check_dialogs(spec: RunSpec, only: Sequence[str]) -> None:
    """Raise ManifestError for whole dialogs as queries that are not extracted, or that the extractor cannot encode."""
    problems = Problems(spec.name)
    readers = [n for n in spec.models if n in (only or spec.models) and models.get(n).dialogs]
    if readers and not spec.dialogs:
        what = "reads whole dialogs as one chat, which this spec does not extract"
        problems.add(f"key models.{readers[0]}", what, "--set dialogs=true, with extractor mllm, or leave it out")
    if spec.dialogs and not extractors.get(spec.extractor.name).reads_dialogs:
        what = f"extractor '{spec.extractor.name}' does not encode a dialog as one query"
        problems.add("key dialogs", what, "use mllm, or leave out dialogs and model st_history")
    problems.raise_if_any()


def _check(registry: Registry, component: Component, place: str, problems: Problems) -> None:
    if component.name not in registry.names():
        what = f"unknown {registry.kind} {component.name!r}"
        problems.add(f"key {place}", what, nearest(component.name, registry.names()))
    else:
        parse_options(registry.get(component.name).Options, component.options, problems.file, place, problems)
