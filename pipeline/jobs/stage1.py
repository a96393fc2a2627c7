"""Stage 1 jobs: extract a spec's features, fit its composer, record the stores, index a catalog."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cache import Store
from manifests.errors import IncompleteError
from manifests.schema import Dataset, RunSpec
from pipeline.composition.checkpoint import fitted, save_composer
from pipeline.composition.compose import Composed, compose
from pipeline.composition.crossfit import fit_folds, new_composer
from pipeline.composition.fit import fit_composer, single_turn_recall
from pipeline.composition.ready import ReadyComposer, composer_folder, fitting_sessions, ready_composer
from pipeline.composition.request import ComposerRequest, composer_request, is_joint
from pipeline.core.binding import StaleError, declared_digest, load_binding, save_binding, source_record
from pipeline.core.workspace import FeatureRecord, Workspace, extraction_request
from pipeline.evaluation.evaluate import load_candidates
from pipeline.extraction.cost import memory_of
from pipeline.extraction.distributed import cluster_for
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.fitting.job import fitted_spec
from pipeline.extraction.plan import Plan, open_store, plan_extraction
from pipeline.extraction.precision import checked_agreement, checked_form, decode_agreement, extractor_in, sample_of
from pipeline.extraction.probe import default_workers, measure, sizes, use_threads
from pipeline.extraction.report import Report
from pipeline.extraction.run import extract
from pipeline.jobs.identities import what_helps

OnEpoch = Callable[[dict[str, float]], None]


@dataclass
class StageOne:
    """Result of ``extract_spec``. ``composed`` is None if the composer must be fitted first."""

    extraction: Report
    composed: Composed | None
    next_command: str

    def as_dict(self) -> dict[str, Any]:
        composed = self.composed.as_dict() if self.composed else None
        return {"extraction": self.extraction.as_dict(), "composed": composed, "next": self.next_command}

    def text(self) -> str:
        parts = [self.extraction.text(), self.composed.text() if self.composed else "", f"next: {self.next_command}"]
        return "\n".join(filter(None, parts))


@dataclass
class Fitted:
    """Record of a fitted composer, and the result of composing with it."""

    about: dict[str, Any]
    composed: Composed
    reused: bool
    next_command: str
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        about = {"composer": self.about, "reused": self.reused, "folder": str(self.folder)}
        return about | {"composed": self.composed.as_dict()}

    def text(self) -> str:
        scores = _scores(self.about.get("validation", {}))
        head = f"composer {self.about['name']} ({'fitted before, kept' if self.reused else 'fitted'})"
        head += f"; single-turn on the validation sessions: {scores}" if scores else ""
        if folds := self.about.get("folds"):
            seen, unseen = _scores(folds["in_sample"]), _scores(folds["out_of_fold"])
            head += f"\ncross-fitted, {folds['count']} folds; single-turn on the train sessions: {unseen} "
            head += f"by heads that have not seen them, {seen} by the head that has"
        weights = f"weights {self.folder} (composer.weights of other specs on these features)"
        return "\n".join([head, weights, self.composed.text(), f"next: {self.next_command}"])


def _scores(values: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.1f}" for k, v in values.items() if k != "triplets")


def extract_spec(
    spec: RunSpec,
    dataset: Dataset,
    workspace: Workspace,
    device: str = "auto",
    precision: str | None = None,
    scheduler: str | None = None,
    local_cluster: int | None = None,
    form: str = "plain",
    **options: Any,
) -> StageOne:
    """Compute the missing rows of ``spec``; existing rows are kept. ``options``: of ``extraction.run.extract``.

    ``precision``: see ``extraction.precision.extractor_in``; overrides the spec's ``extractor.dtype``. ``scheduler``,
    ``local_cluster``: compute the shards on a Dask cluster, or on this number of local processes. ``form``: format of
    the image tower, see ``extraction.precision``.
    """
    clustered = bool(scheduler or local_cluster)
    # a coordinator needs only the model's identity: the workers have the devices
    chosen, extractor, why = extractor_in(
        fitted_spec(spec, dataset, workspace), dataset, workspace, "cpu" if clustered else device, precision
    )
    use_threads(extractor)

    check = partial(_checked, chosen, extractor, dataset, form, why, clustered)
    with cluster_for(chosen, device, scheduler, local_cluster or 0, form) if clustered else nullcontext() as cluster:
        report = extract(dataset, extractor, workspace.stores, cluster=cluster, check=check, **options)
    _record(spec, dataset, workspace, extractor, report)
    return _composed(spec, dataset, workspace, extractor, report)


def _checked(
    spec: RunSpec, extractor: Extractor, dataset: Dataset, form: str, why: str, clustered: bool, plan: Plan
) -> dict[str, Any]:
    """Check precision and format against float32 and the plain format; return the session's record.

    On a cluster each worker checks its format itself.
    """
    record = checked_agreement(spec, extractor, dataset) | ({"precision": why} if why else {})
    if not clustered and "image" in plan.tables:
        record |= decode_agreement(extractor, dataset)
    if form == "plain" or clustered or "image" not in plan.tables:
        return record | ({"form": form} if form != "plain" else {})
    return record | checked_form(extractor, sample_of(extractor, dataset)["images"], form)


def _record(spec: RunSpec, dataset: Dataset, workspace: Workspace, extractor: Extractor, report: Report) -> None:
    """Write the extraction record: the store, the content keys of the images, and the sources of the dataset."""
    old, keys = workspace.note(spec), report.catalogue
    if old is not None and not dataset.images.keys() <= keys.keys():
        with suppress(StaleError):  # an image that is unreadable now keeps its recorded content
            before = load_binding(workspace.bindings, old.binding)
            keys = {i: k for i, k in before.items() if i in dataset.images} | keys
    path = Path(next(iter(shlex.split(spec.asked)), ""))  # of the spec, if it is not a shipped one
    gallery = "imported" if spec.extractor.name == "imported" else extractor.reads.replace("pixels", "image")
    note = FeatureRecord(
        spec=spec.name,
        request=extraction_request(spec),
        backbone=str(report.path.relative_to(workspace.stores)),
        binding=save_binding(workspace.bindings, keys),
        declared=declared_digest(dataset),
        sources=source_record(spec),
        contaminated_on=tuple(extractor.card.contaminated_on),
        given=str(path.resolve()) if path.is_file() else spec.name,
        card={"licence": extractor.card.licence, "source": extractor.card.source},
        gallery=gallery,
    )
    if old is not None and old.backbone == note.backbone:
        note = replace(note, composer=old.composer, store=old.store)
    workspace.write_note(spec, note)


def _composed(spec: RunSpec, dataset: Dataset, workspace: Workspace, extractor: Extractor, report: Report) -> StageOne:
    """Compose the queries, if a composer is ready; a joint model has computed them itself."""
    following = "train" if dataset.split("train") else "serve"
    if any(n == of for n, of in report.left_out.values() if of):
        following = "extract" if report.unread else "extract --retry-failed"
    if "query" in extractor.tables:
        workspace.write_composed(spec, dataset, report.path)
        return StageOne(report, None, spec.command(*following.split()))
    composer = ready_composer(composer_request(spec), spec, dataset, workspace.backbone(spec, dataset))
    if composer is None:
        return StageOne(report, None, spec.command("fit-composer"))
    return StageOne(report, compose_spec(spec, dataset, workspace, composer), spec.command(*following.split()))


def plan_spec(
    spec: RunSpec,
    dataset: Dataset,
    workspace: Workspace,
    device: str = "auto",
    precision: str | None = None,
    probe: bool = False,
    batch_size: int | Literal["auto"] = "auto",
    workers: int | None = None,
) -> Plan:
    """Return the plan of an extraction: steps and reasons. Write nothing; run the model only to ``probe`` it."""
    _, extractor, _ = extractor_in(fitted_spec(spec, dataset, workspace), dataset, workspace, device, precision)
    use_threads(extractor)
    store = open_store(workspace.stores, dataset, extractor)
    workers = default_workers(extractor.device) if workers is None else workers
    plan = plan_extraction(dataset, extractor, store, stores=workspace.stores)
    largest = sizes(extractor.device)[-1] if batch_size == "auto" else batch_size
    plan = replace(plan, memory=memory_of(extractor, plan.images, len(plan.catalogue), workers, largest))
    return replace(plan, probe=measure(extractor, plan, dataset.images_root, workers, batch_size) if probe else None)


def fit_composer_spec(
    spec: RunSpec, dataset: Dataset, workspace: Workspace, on_epoch: OnEpoch = lambda _: None
) -> Fitted:
    """Fit the composer of ``spec``, or reuse a fitted one, and compose all features.

    Raises IncompleteError if there is nothing to fit: a joint model, fusion, or shipped weights.
    """
    backbone, request = workspace.backbone(spec, dataset), composer_request(spec)
    if is_joint(backbone):
        raise IncompleteError(f"extractor '{spec.extractor.name}' answers queries itself: it has no composer to fit")
    if not request.kind.trainable:
        what = f"composer '{request.name}' has nothing to fit"
        raise IncompleteError(f"{what}: `{spec.command('extract')}` composes with it")
    folder = composer_folder(request, spec, dataset, backbone)
    reused = fitted(folder, request.folds)
    if not reused and request.weights is None:
        _fit(request, folder, spec, dataset, backbone, on_epoch)
    ready = ready_composer(request, spec, dataset, backbone)
    assert ready is not None
    composed = compose_spec(spec, dataset, workspace, ready)
    return Fitted(ready.about, composed, reused, spec.command("train"), folder)


def _fit(
    request: ComposerRequest, folder: Path, spec: RunSpec, dataset: Dataset, backbone: Store, on_epoch: OnEpoch
) -> None:
    fit, validation = fitting_sessions(spec, dataset)
    if not fit:
        what = f"dataset '{dataset.name}' has no train sessions to fit composer {request.name} on"
        raise IncompleteError(f"{what}: add train sessions, or use composer fusion")
    composer = new_composer(request, backbone)
    curve = []
    try:
        for metrics in fit_composer(composer, backbone, fit, request.fit):
            curve.append(metrics["loss"])
            on_epoch(metrics)
    except IncompleteError as error:
        raise IncompleteError(f"{error}: {what_helps(backbone, spec)}") from error
    record: dict[str, Any] = {"fit": request.fit.model_dump(), "loss": curve, "backbone": backbone.fingerprint}
    if validation:
        record["validation"] = single_turn_recall(composer, backbone, dataset, validation)
    if request.folds:
        record["folds"] = fit_folds(folder, composer, request, fit, dataset, backbone, on_epoch)
    save_composer(folder, composer, record)


def compose_spec(spec: RunSpec, dataset: Dataset, workspace: Workspace, ready: ReadyComposer) -> Composed:
    """Write the composed store of ``spec`` and record it for stage 2."""
    backbone = workspace.backbone(spec, dataset)
    composed = compose(backbone, dataset, ready.composer, workspace.stores, ready.weights, crossed=ready.crossed)
    workspace.write_composed(spec, dataset, composed.path)
    return composed


@dataclass(frozen=True)
class Indexed:
    """Result of ``index_spec``. ``galleries``: name -> (searchable images, images without a feature)."""

    stage: StageOne
    galleries: dict[str, tuple[int, int]]
    next_command: str

    def as_dict(self) -> dict[str, Any]:
        found = {name: {"images": n, "without_feature": dropped} for name, (n, dropped) in self.galleries.items()}
        return {**self.stage.as_dict(), "galleries": found, "next": self.next_command}

    def text(self) -> str:
        lines = [self.stage.extraction.text()]
        for name, (n, dropped) in self.galleries.items():
            lines.append(f"gallery {name}: {n:,} images" + (f"; {dropped:,} without a feature" if dropped else ""))
        return "\n".join([*lines, f"next: {self.next_command}"])


def index_spec(spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str = "auto", **options: Any) -> Indexed:
    """Compute the missing features of the spec's images and texts; ``options`` as ``extract_spec``.

    Raises IncompleteError for a composer that must be fitted first, naming the ways to have one.
    """
    stage = extract_spec(spec, dataset, workspace, device, **options)
    if stage.next_command == spec.command("fit-composer"):
        name = spec.composer.name if spec.composer else "fusion"
        if dataset.split("train"):
            what = f"composer '{name}' is not fitted yet"
            raise IncompleteError(f"{what}: run `{stage.next_command}`, then `index` again")
        raise IncompleteError(
            f"composer '{name}' is not fitted, and a catalog has no sessions to fit it on: set composer.weights to "
            'the folder of a fitted one (`fit-composer` prints it), or composer.name = "fusion", which needs none'
        )
    galleries = [g for g in dataset.galleries if g.split == "test"] or list(dataset.galleries)
    found = load_candidates(workspace.store(spec, dataset), galleries)
    counts = {name: (len(one.images), len(one.dropped)) for name, one in found.items()}
    return Indexed(stage, counts, spec.command("search", "--text", "in navy"))
