"""Load runs for the views: of a spec, by id, or any on a catalog's features; what a result came from, by content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache import Store
from manifests.errors import FashionNTMError, IncompleteError, ManifestError, Problem
from manifests.identity import digest, session_key
from manifests.schema import Session
from pipeline.evaluation.evaluate import Candidates
from pipeline.evaluation.files import ResultFiles
from pipeline.jobs.experiment import Experiment
from pipeline.training.checkpoint import load_model
from pipeline.training.data import SessionFeatures
from pipeline.training.dialogue import weights_digest
from pipeline.training.models import build_model, model_title
from pipeline.training.models.base import MemoryModel
from pipeline.training.runs import RunFolder, list_runs
from pipeline.training.validate import inputs_of

DIGITS = 4  # fewest digits that may abbreviate a run id
UNTRAINED = "untrained"
ALPHA = 0.7  # of EWMA, unless the spec sets it


@dataclass(frozen=True)
class Trained:
    """One finished run in eval mode. ``label``: unique among those shown; ``weights``: SHA-256 of loaded weights."""

    label: str
    title: str
    seed: int | None
    folder: RunFolder
    model: MemoryModel
    weights: str
    preset: str = ""

    @property
    def run(self) -> str:
        return self.folder.id

    @property
    def name(self) -> str:
        """Name in specs: that of the preset that asked for the run, or of the memory model."""
        return self.preset or self.folder.model

    @property
    def by_turn(self) -> bool:
        """Whether the model answers every turn; a model of concatenated captions answers the last one only."""
        return self.model.reads == "turns"


def trained_runs(
    experiment: Experiment, models: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> tuple[list[Trained], list[str]]:
    """Return the finished runs of the experiment's spec, in its order, and the commands that train the others."""
    runs = [(run, experiment.folder(run)) for run in experiment.current_runs(models, seeds)]
    found = [(folder, run.preset) for run, folder in runs if folder.state == "finished"]
    missing = [experiment.train_command(run) for run, folder in runs if folder.state != "finished"]
    return load_trained(found, experiment.device), missing


def first_seeds(found: Sequence[Trained]) -> dict[str, Trained]:
    """Return name -> run of its first seed, in order. Tables average over all seeds."""
    first: dict[str, Trained] = {}
    for trained in found:
        first.setdefault(trained.name, trained)
    return first


def runs_by_id(experiment: Experiment, ids: Sequence[str]) -> list[Trained]:
    """Return finished runs on the experiment's data by id or its first digits, in the given order.

    Raises ManifestError for an id that matches none or several runs, listing the available ones.
    """
    finished = [f for f in list_runs(experiment.workspace.runs) if f.state == "finished"]
    known = [f for f in finished if experiment.run_of(f.record()["identity"]) is not None]
    if not known:
        spec = experiment.spec
        raise IncompleteError(f"no run on the features of '{spec.name}' is trained: run `{spec.command('train')}`")
    there = "there are: " + ", ".join(f"{folder.model} {folder.id}" for folder in known)
    return load_trained([(run_by_id(wanted, known, there), "") for wanted in dict.fromkeys(ids)], experiment.device)


def run_by_id(wanted: str, known: Sequence[RunFolder], there: str) -> RunFolder:
    """Return the run with this id or these first digits. Raises ManifestError with ``there``, the runs to choose from."""
    found = [folder for folder in known if len(wanted) >= DIGITS and folder.id.startswith(wanted)]
    if len(found) != 1:
        what = f"{len(found)} runs begin so" if found else f"no finished run has this id ({DIGITS} digits or more)"
        raise ManifestError([Problem("--run", wanted, what, there)])
    return found[0]


def load_trained(runs: Sequence[tuple[RunFolder, str]], device: torch.device) -> list[Trained]:
    """Load runs, each with the preset that asked for it or "", with labels unique among them.

    Not those of whole dialogs as one chat, whose queries are cached alone.
    """
    loaded = [(folder, load_model(folder.path, device), preset) for folder, preset in runs]
    found = [(f, f.record()["identity"]["seed"], model, preset) for f, model, preset in loaded if not model.dialogs]
    names = [preset or folder.model for folder, _, _, preset in found]
    out: list[Trained] = []
    for (folder, seed, model, preset), name in zip(found, names, strict=True):
        label = name
        if names.count(name) > 1:
            label += f" seed {seed}" if seed is not None else f" {folder.id[:6]}"
        if any(other.label == label for other in out):
            label += f" {folder.id[:6]}"
        weights = ResultFiles.of(folder.path).weights()
        out.append(Trained(label, model_title(name), seed, folder, model, weights, preset))
    return out


def catalogue_models(experiment: Experiment, ids: Sequence[str] = ()) -> list[Trained]:
    """Return finished runs, of any dataset, on features with the fingerprint of the experiment's store; else EWMA and last.

    ``ids``: only these runs, by id, first digits or folder. Raises ManifestError for an id that matches none or
    several runs, and for a run on other features.
    """
    known = [f for f in list_runs(experiment.workspace.runs) if f.state == "finished"]
    fitting = [f for f in known if _store_of(f) == experiment.store.fingerprint]
    if not ids:
        return load_trained([(f, "") for f in fitting], experiment.device) or untrained(experiment)
    there = "on these features there are: " + (", ".join(f"{f.model} {f.id}" for f in fitting) or "none")
    chosen = []
    for wanted in dict.fromkeys(ids):
        folder = RunFolder(Path(wanted).resolve())
        if folder.state != "finished":
            folder = run_by_id(wanted, known, there)
        if _store_of(folder) != experiment.store.fingerprint:
            reads, there = _store_of(folder)[:12], experiment.store.fingerprint[:12]
            what = f"the run reads features {reads}, the catalog has {there}"
            fix = "use the run's extractor, precision and composer (with weights = its folder) in the catalog's spec"
            raise ManifestError([Problem("--run", wanted, what, fix)])
        chosen.append(folder)
    return load_trained([(folder, "") for folder in chosen], experiment.device)


def untrained(experiment: Experiment) -> list[Trained]:
    """Return EWMA, with alpha of the spec or 0.7, and the last turn alone: models that need no training."""
    dim, found = experiment.store.tables["target"].dim, []
    for name, options in (("ewma", {"alpha": ALPHA}), ("last", {})):
        given = {k: v for k, v in experiment.spec.models.get(name, {}).items() if k != "training"}
        model = build_model(name, options | given, dim).to(experiment.device).eval()
        folder = RunFolder(experiment.workspace.runs / experiment.dataset.name / name / UNTRAINED)
        found.append(Trained(name, model.title, None, folder, model, weights_digest(model)))
    return found


def _store_of(folder: RunFolder) -> str:
    try:
        return str(folder.record()["identity"]["store"])
    except (FashionNTMError, KeyError, OSError):
        return ""


@torch.no_grad()
def turn_outputs(trained: Trained, features: SessionFeatures) -> Tensor:
    """Return f'_qry of every session: float32 [S, T, D], the last turn repeated after a session's end.

    A model of concatenated captions has T = 1, its answer to the whole session.
    """
    model = trained.model
    take, parts = inputs_of(model, features), []
    for index in torch.arange(len(features), device=features.device).split(1024):
        queries, _, lengths = take(index)
        outputs = model(queries, lengths)
        turns = torch.arange(outputs.shape[1], device=outputs.device).expand(len(index), -1)
        rows = torch.minimum(turns, lengths[:, None] - 1)
        parts.append(outputs.gather(1, rows[..., None].expand(-1, -1, outputs.shape[2])))
    return torch.cat(parts)


def data_of(store: Store, galleries: Mapping[str, Candidates], sessions: Sequence[Session]) -> dict[str, Any]:
    """Return digests of the features, of the gallery members by category, and of the sessions shown with them.

    A member is identified by the content of its image (or caption), so ids and their order do not change a digest.
    """
    bound = store.catalogue()
    members = {name: digest(sorted(bound[i].hex() for i in found.images)) for name, found in galleries.items()}
    shown = digest([session_key(session, bound).hex() for session in sessions])
    return {"store": store.fingerprint, "galleries": members, "sessions": shown}


def models_of(trained: Iterable[Trained]) -> list[dict[str, str]]:
    return [{"label": t.label, "run": t.run, "weights": t.weights} for t in trained]
