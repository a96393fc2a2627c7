"""Stage 1 as jobs: extract a spec's features, fit its composer, and note where the rows are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import Store
from manifests.errors import IncompleteError
from manifests.schema import Dataset, RunSpec, Session
from manifests.validation import split_validation
from pipeline.composition.checkpoint import load_composer, save_composer
from pipeline.composition.compose import Composed, compose
from pipeline.composition.composers.base import Composer
from pipeline.composition.fit import fit_composer, single_turn_recall
from pipeline.composition.request import ComposerRequest, composer_request
from pipeline.workspace import Extracted, Workspace, extraction_request


@dataclass
class StageOne:
    """What ``extract_spec`` did. ``composed`` is None when the composer must be fitted first."""

    extraction: Any  # pipeline.extraction.run.Report
    composed: Composed | None
    next_command: str


def extract_spec(
    spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str = "auto", **options: Any
) -> StageOne:
    """Bring every row of ``spec`` up to date; what is there is kept. ``options`` go to ``extraction.run.extract``."""
    from pipeline.extraction.extractors import load_extractor
    from pipeline.extraction.run import extract

    request = composer_request(spec)
    extractor = load_extractor(spec, device)
    report = extract(dataset, extractor, workspace.stores, **options)
    old = workspace.note(spec)
    note = Extracted(
        request=extraction_request(spec),
        backbone=str(report.path.relative_to(workspace.stores)),
        contaminated_on=tuple(extractor.card.contaminated_on),
    )
    if old is not None and (old.request, old.backbone) == (note.request, note.backbone):
        note = Extracted(**{**vars(note), "composer": old.composer, "store": old.store})
    workspace.write_note(spec, note)
    if "query" in extractor.tables:  # a joint model answers queries itself
        workspace.write_composed(spec, report.path)
        return StageOne(report, None, f"train {spec.asked}")
    assert request is not None
    composer = _ready_composer(request, spec, dataset, Store.open(report.path))
    if composer is None:
        return StageOne(report, None, f"fit-composer {spec.asked}")
    return StageOne(report, compose_spec(spec, dataset, workspace, *composer), f"train {spec.asked}")


def _ready_composer(
    request: ComposerRequest, spec: RunSpec, dataset: Dataset, backbone: Store
) -> tuple[Composer, str | None] | None:
    """The composer and its weights' SHA-256, or None when it has to be fitted first."""
    if not request.kind.trainable:
        return request.kind(request.options, backbone.tables["image"].dim, backbone.tables["text"].dim).eval(), None
    folder = request.weights or composer_folder(request, spec, dataset, backbone)
    if request.weights is None and not folder.exists():
        return None
    composer, about = load_composer(folder)
    return composer, about["weights"]


def fitting_sessions(spec: RunSpec, dataset: Dataset) -> tuple[tuple[Session, ...], tuple[Session, ...]]:
    """(sessions to fit on, validation sessions): the pair-clean cut of the train sessions that ``spec`` asks for."""
    return split_validation(dataset.split("train"), spec.validation.fraction, spec.validation.seed)


def composer_folder(request: ComposerRequest, spec: RunSpec, dataset: Dataset, backbone: Store) -> Path:
    """Where the composer fitted for exactly this request, these triplets and this backbone lives."""
    fit, _ = fitting_sessions(spec, dataset)
    return backbone.path / "composers" / request.key(backbone.fingerprint, fit)


def fit_composer_spec(
    spec: RunSpec, dataset: Dataset, workspace: Workspace, on_epoch: Callable[[dict[str, float]], None] = lambda _: None
) -> tuple[dict[str, Any], Composed]:
    """Fit the composer of ``spec`` (or reuse the one already fitted for it) and compose all its features.

    Returns the composer's record (options, loss, single-turn recall on the validation sessions) and the rows written.
    Raises IncompleteError when there is nothing to fit: a joint model, fusion, or shipped weights.
    """
    backbone, request = workspace.backbone(spec), composer_request(spec)
    assert request is not None
    if "query" in backbone.tables:
        raise IncompleteError(f"extractor '{spec.extractor.name}' answers queries itself: it has no composer to fit")
    if not request.kind.trainable:
        raise IncompleteError(f"composer '{request.name}' has nothing to fit: `extract {spec.asked}` composes with it")
    folder = request.weights or composer_folder(request, spec, dataset, backbone)
    if not folder.exists():
        _fit(request, folder, spec, dataset, backbone, on_epoch)
    composer, about = load_composer(folder)
    return about, compose_spec(spec, dataset, workspace, composer, about["weights"])


def _fit(
    request: ComposerRequest,
    folder: Path,
    spec: RunSpec,
    dataset: Dataset,
    backbone: Store,
    on_epoch: Callable[[dict[str, float]], None],
) -> None:
    import torch

    fit, validation = fitting_sessions(spec, dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.fit.seed)
        composer = request.kind(request.options, backbone.tables["image"].dim, backbone.tables["text"].dim)
    curve = []
    for metrics in fit_composer(composer, backbone, fit, request.fit):
        curve.append(metrics["loss"])
        on_epoch(metrics)
    record: dict[str, Any] = {"fit": request.fit.model_dump(), "loss": curve, "backbone": backbone.fingerprint}
    if validation:
        record["validation"] = single_turn_recall(composer, backbone, dataset, validation)
    save_composer(folder, composer, record)


def compose_spec(
    spec: RunSpec, dataset: Dataset, workspace: Workspace, composer: Composer, weights: str | None
) -> Composed:
    """Write the composed store of ``spec`` and note it for stage 2."""
    composed = compose(workspace.backbone(spec), dataset, composer, workspace.stores, weights)
    workspace.write_composed(spec, composed.path)
    return composed
