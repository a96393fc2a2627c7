"""The ``fit-extractor`` job: its triplets, the folder of the checkpoint, and its lookup by ``extract``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cache.files import replace_atomically
from manifests.errors import FashionNTMError, IncompleteError
from manifests.identity import changed_fields, digest
from manifests.options import valid_options
from manifests.schema import Component, Dataset, RunSpec, Session
from pipeline.composition.ready import fitting_sessions
from pipeline.composition.request import composer_request
from pipeline.core.device import resolve_device
from pipeline.core.image_files import DIGESTS
from pipeline.core.workspace import Workspace
from pipeline.extraction.extractors import extractors
from pipeline.extraction.extractors._fittable import STARTS, FitOptions, Fittable
from pipeline.extraction.fitting.loop import SAVE_SECONDS, Progress, fit, single_turn
from pipeline.extraction.fitting.triplets import Loader, content_of, digest_of, triplets_of

RECORD, UNFINISHED = "fit.json", "unfinished"
_NO_WEIGHT = {"dtype", "store_dtype", "normalise", "contaminated_on"}  # options that do not affect the fitted weights
Tell = Callable[[str], None]


@dataclass(frozen=True)
class FittedExtractor:
    """Fitted checkpoint: its folder, its record, and whether it already existed."""

    folder: Path
    record: dict[str, Any]
    reused: bool
    next_command: str

    def as_dict(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "reused": self.reused, **self.record, "next": self.next_command}

    def text(self) -> str:
        r = self.record
        counts = f"{r['triplets']:,} triplets, {r['steps']:,} steps, loss {r['loss'][0]:.3f} -> {r['loss'][-1]:.3f}"
        lines = [f"model  {self.folder}", f"{'fitted before, kept' if self.reused else 'fitted'}: {counts}"]
        if r["validation"]:
            scores = ", ".join(f"{k} {v:.1f}" for k, v in r["validation"].items() if k != "triplets")
            lines.append(f"single-turn on {r['validation']['triplets']:,.0f} pair-clean validation triplets: {scores}")
        if r["unreadable"]:
            lines.append(f"{len(r['unreadable']):,} images could not be read; their triplets were left out")
        return "\n".join([*lines, f"next: {self.next_command}"])


@dataclass(frozen=True)
class _Request:
    family: type[Fittable]
    options: Any
    fit: FitOptions
    alpha: float

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Return content digests of the initial weights. Raises ModelError when they are not found."""
        return self.family.origin(self.options)

    def folder(self, workspace: Workspace, sessions: tuple[Session, ...], dataset: Dataset) -> Path:
        """Return the folder, named by a digest of the fit's inputs; initial weights count by content, not by name."""
        options = self.options.model_dump(exclude=_NO_WEIGHT)
        options |= {name: None for name in STARTS if name in options}
        about = [self.family.version, options, self.fit.model_dump(), self.alpha]
        about += [self.origin] if self.origin else []
        about.append(content_of(triplets_of(sessions), dataset, workspace.stores / dataset.name / DIGESTS))
        key = digest(about)[:12]
        return workspace.out / "extractors" / dataset.name / f"{self.family.__module__.rsplit('.', 1)[-1]}-{key}"

    def record(self, folder: Path) -> dict[str, Any] | None:
        """Return the record of the fit in ``folder``; None if it is unfinished.

        Raises FashionNTMError when it started from other weights than the present ones.
        """
        if not (folder / RECORD).is_file():
            return None
        found: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        self.check(found.get("started_from", {}), folder)
        return found

    def check(self, started_from: Mapping[str, Any], folder: Path) -> None:
        """Raise FashionNTMError with the differences when ``started_from`` is not the present origin."""
        if changed := changed_fields(dict(started_from), self.origin):
            what = f"the fit in {folder} started from other weights ({'; '.join(changed)})"
            raise FashionNTMError(f"{what}: remove that folder and run `fit-extractor` again")


def needs_fitting(spec: RunSpec) -> bool:
    """Return whether the extractor of ``spec`` requires ``fit-extractor``."""
    return _request(spec) is not None


def fitted_spec(spec: RunSpec, dataset: Dataset, workspace: Workspace) -> RunSpec:
    """Return ``spec`` with ``extractor.model`` set to its fitted checkpoint; unchanged if it requires no fit.

    Raises IncompleteError with the command to run when it is not fitted yet.
    """
    request = _request(spec)
    if request is None:
        return spec
    folder = request.folder(workspace, fitting_sessions(spec, dataset)[0], dataset)
    if request.record(folder) is None:
        fix = f"run `{spec.command('fit-extractor')}`"
        raise IncompleteError(f"extractor '{spec.extractor.name}' is not fitted yet: {fix}")
    options = {key: value for key, value in spec.extractor.options.items() if key != "fit"}
    component = Component(**{"name": spec.extractor.name, **options, "model": str(folder.resolve())})
    return spec.model_copy(update={"extractor": component})


def fit_extractor_spec(
    spec: RunSpec,
    dataset: Dataset,
    workspace: Workspace,
    device: str = "auto",
    workers: int = 2,
    tell: Tell = lambda _: None,
    on_step: Callable[[Progress, int, float], None] = lambda *_: None,
    save_seconds: float = SAVE_SECONDS,
) -> FittedExtractor:
    """Fit the extractor of ``spec`` on the train triplets of ``dataset``, or return the existing one.

    The pair-clean validation part defined by ``spec.validation`` is excluded from the fit and used to score it. After
    an interruption, the same call resumes from the last checkpoint. Raises IncompleteError if there is nothing to fit.
    """
    request = _request(spec)
    if request is None:
        fix = "set extractor.fit.epochs, or leave extractor.model out for a model without published weights"
        raise IncompleteError(f"spec '{spec.name}' asks for no fitting: {fix}")
    sessions, validation = fitting_sessions(spec, dataset)
    folder = request.folder(workspace, sessions, dataset)
    done = spec.command("extract")
    if (found := request.record(folder)) is not None:
        return FittedExtractor(folder, found, True, done)
    triplets = triplets_of(sessions)
    texts = list(dict.fromkeys(t.text for t in triplets))
    extractor = request.family.fresh(request.options, resolve_device(device), texts)
    request.check(extractor.starts, folder)  # the files may have changed since the key was computed
    weights = sum(p.numel() for p in extractor.network.parameters() if p.requires_grad)
    what = f"{len(triplets):,} triplets, {weights / 1e6:.1f} M weights, {extractor.device}"
    tell(f"fitting {spec.extractor.name} on {what}")
    loader = Loader(extractor, dataset, workers)
    progress = fit(extractor, loader, triplets, request.fit, request.alpha, folder / UNFINISHED, on_step, save_seconds)
    scores: dict[str, float] = {}
    if validation:
        tell(f"scoring on {len(validation):,} validation sessions")
        scores = single_turn(extractor, loader, dataset, validation, request.alpha, request.fit.batch_size)
    extractor.save(folder)
    record: dict[str, Any] = {"extractor": spec.extractor.name, "dataset": dataset.name}
    record["fit"] = request.fit.model_dump()
    record |= {"alpha": request.alpha, "triplets": len(triplets), "seen": digest_of(triplets)}
    record |= {"started_from": extractor.starts, "steps": progress.step, "loss": progress.curve}
    record |= {"validation": scores, "unreadable": loader.unreadable, "device": str(extractor.device)}
    record |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    replace_atomically(folder / RECORD, json.dumps(record, indent=2).encode() + b"\n")  # last: now it is complete
    shutil.rmtree(folder / UNFINISHED)
    return FittedExtractor(folder, record, False, done)


def _request(spec: RunSpec) -> _Request | None:
    family = extractors.get(spec.extractor.name, spec.name, "key extractor.name")
    if not issubclass(family, Fittable):
        return None
    options = valid_options(family.Options, spec.extractor.options, spec.name, "extractor")
    if not family.starts_from(options):
        return None
    chosen: FitOptions = options.fit  # type: ignore[attr-defined]
    fused = float(getattr(composer_request(spec).options, "alpha", 0.5))
    return _Request(family, options, chosen, fused if chosen.alpha is None else chosen.alpha)
