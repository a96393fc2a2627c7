"""Load trained runs for the views: those of a spec, or any run on the same features by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manifests.errors import IncompleteError, ManifestError, Problem
from pipeline.evaluation.files import ResultFiles
from pipeline.jobs.experiment import Experiment
from pipeline.training.checkpoint import load_model
from pipeline.training.data import SessionFeatures
from pipeline.training.models import model_title
from pipeline.training.models.base import MemoryModel
from pipeline.training.runs import RunFolder, list_runs
from pipeline.training.validate import inputs_of

DIGITS = 4  # fewest digits that may abbreviate a run id


@dataclass(frozen=True)
class Trained:
    """One finished run with its model in eval mode. ``label`` is unique among the runs shown together.

    ``weights``: SHA-256 of the weights that were loaded.
    """

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
    folders, asked, missing = [], [], []
    for run in experiment.current_runs(models, seeds):
        folder = experiment.folder(run)
        if folder.state == "finished":
            folders.append(folder)
            asked.append(run.preset)
        else:
            missing.append(experiment.train_command(run))
    return load_trained(folders, experiment.device, asked), missing


def runs_by_id(experiment: Experiment, ids: Sequence[str]) -> list[Trained]:
    """Return finished runs on the experiment's data by id or its first digits, in the given order.

    Raises ManifestError for an id that matches none or several runs, listing the available ones.
    """
    known = [
        folder
        for folder in list_runs(experiment.workspace.runs)
        if folder.state == "finished" and experiment.run_of(folder.record()["identity"]) is not None
    ]
    if not known:
        raise IncompleteError(
            f"no run on the features of '{experiment.spec.name}' is trained: run `{experiment.spec.command('train')}`"
        )
    there = "there are: " + ", ".join(f"{folder.model} {folder.id}" for folder in known)
    return load_trained([run_by_id(wanted, known, there) for wanted in dict.fromkeys(ids)], experiment.device)


def run_by_id(wanted: str, known: Sequence[RunFolder], there: str) -> RunFolder:
    """Return the run with this id or these first digits. Raises ManifestError with ``there``, the runs to choose from."""
    found = [folder for folder in known if len(wanted) >= DIGITS and folder.id.startswith(wanted)]
    if len(found) != 1:
        what = f"{len(found)} runs begin so" if found else f"no finished run has this id ({DIGITS} digits or more)"
        raise ManifestError([Problem("--run", wanted, what, there)])
    return found[0]


def load_trained(folders: Sequence[RunFolder], device: torch.device, asked: Sequence[str] = ()) -> list[Trained]:
    """Load runs with labels unique among them; not those of whole dialogs as one chat, whose queries are cached alone.

    ``asked``: the preset that asked for each run, or "".
    """
    loaded = [(f, load_model(f.path, device), p) for f, p in zip(folders, asked or [""] * len(folders), strict=True)]
    found = [(f, f.record()["identity"]["seed"], model, preset) for f, model, preset in loaded if not model.dialogs]
    names = [preset or folder.model for folder, _, _, preset in found]
    out: list[Trained] = []
    for (folder, seed, model, preset), name in zip(found, names, strict=True):
        label = name
        if names.count(name) > 1:
            label += f" seed {seed}" if seed is not None else f" {folder.id[:6]}"
        if any(other.label == label for other in out):
            label += f" {folder.id[:6]}"
        title = model_title(name)
        out.append(Trained(label, title, seed, folder, model, ResultFiles.of(folder.path).weights(), preset))
    return out


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
