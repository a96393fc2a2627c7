"""The composer of a spec, ready to compose: its folder, its weights, and its heads by fold."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache import Store
from manifests.schema import Dataset, RunSpec, Session
from manifests.validation import split_validation
from pipeline.composition.checkpoint import COMPOSERS, fitted, load_composer
from pipeline.composition.composers.base import Composer
from pipeline.composition.crossfit import CrossFitted, load_folds
from pipeline.composition.request import ComposerRequest, row_dims


@dataclass(frozen=True)
class ReadyComposer:
    """A composer in eval mode. ``about``: its record, {} if it is not fitted; ``crossed``: its heads by fold."""

    composer: Composer
    about: dict[str, Any] = field(default_factory=dict)
    crossed: CrossFitted | None = None

    @property
    def weights(self) -> str | None:
        """SHA-256 of the weights; None for a composer without any."""
        return self.about.get("weights")


def fitting_sessions(spec: RunSpec, dataset: Dataset) -> tuple[tuple[Session, ...], tuple[Session, ...]]:
    """Return (sessions to fit on, validation sessions): the pair-disjoint split of the train sessions in ``spec``."""
    return split_validation(dataset.split("train"), **dict(spec.validation))


def composer_folder(request: ComposerRequest, spec: RunSpec, dataset: Dataset, backbone: Store) -> Path:
    """Return the folder of the given weights, or of the composer fitted on exactly these triplets and this backbone."""
    if request.weights:
        return request.weights
    return backbone.path / COMPOSERS / request.key(backbone, dataset, *fitting_sessions(spec, dataset))


def ready_composer(
    request: ComposerRequest, spec: RunSpec, dataset: Dataset, backbone: Store, folds: bool = True
) -> ReadyComposer | None:
    """Return the composer of the spec, or None if it must be fitted first. ``folds``: also load the heads by fold."""
    if not request.kind.trainable:
        return ReadyComposer(request.kind(request.options, *row_dims(backbone)).eval())
    folder = composer_folder(request, spec, dataset, backbone)
    if request.weights is None and not fitted(folder, request.folds):
        return None
    if not (folds and request.folds):
        return ReadyComposer(*load_composer(folder))
    crossed = load_folds(folder, request, fitting_sessions(spec, dataset)[0], backbone)
    return ReadyComposer(*load_composer(folder), crossed)
