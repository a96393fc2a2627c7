"""The trained runs that can be looked at: those a spec asks for, or any run on the same features by its id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manifests.errors import IncompleteError, ManifestError, Problem
from pipeline.evaluation.files import ResultFiles
from pipeline.jobs.stage2 import Experiment
from pipeline.training.checkpoint import load_model
from pipeline.training.data import SessionFeatures
from pipeline.training.models.base import MemoryModel
from pipeline.training.runs import RunFolder, list_runs
from pipeline.training.validate import inputs_of

DIGITS = 4  # fewest digits of a run id that may stand for it


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

    @property
    def run(self) -> str:
        return self.folder.id

    @property
    def name(self) -> str:
        """The memory model's name in the registry and in specs."""
        return self.folder.model

    @property
    def by_turn(self) -> bool:
        """Whether it answers every turn; a model of concatenated captions answers the last one alone."""
        return self.model.reads == "turns"


def trained_runs(
    stage: Experiment, models: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> tuple[list[Trained], list[str]]:
    """The finished runs that the stage's spec asks for, in its order, and the commands that train the others."""
    folders, missing = [], []
    for run in stage.current_runs(models, seeds):
        folder = stage.folder(run)
        if folder.state == "finished":
            folders.append(folder)
        else:
            missing.append(f"python cli.py {stage.train_command(run)}")
    return _load(folders, stage.device), missing


def runs_by_id(stage: Experiment, ids: Sequence[str]) -> list[Trained]:
    """Finished runs on the stage's data by id or its first digits, in the order given.

    Raises ManifestError for an id that fits none or several of them, naming those there are.
    """
    known = [
        folder
        for folder in list_runs(stage.workspace.runs)
        if folder.state == "finished" and stage.run_of(folder.record()["identity"]) is not None
    ]
    if not known:
        raise IncompleteError(
            f"no run on the features of '{stage.spec.name}' is trained: run `train {stage.spec.asked}`"
        )
    chosen = []
    for wanted in dict.fromkeys(ids):
        found = [folder for folder in known if len(wanted) >= DIGITS and folder.id.startswith(wanted)]
        if len(found) != 1:
            what = f"{len(found)} runs begin so" if found else f"no finished run has this id ({DIGITS} digits or more)"
            there = ", ".join(f"{folder.model} {folder.id}" for folder in known)
            raise ManifestError([Problem("--run", wanted, what, f"there are: {there}")])
        chosen += found
    return _load(chosen, stage.device)


def _load(folders: Sequence[RunFolder], device: torch.device) -> list[Trained]:
    found = [(folder, folder.record()["identity"]["seed"], load_model(folder.path, device)) for folder in folders]
    names = [folder.model for folder, _, _ in found]
    out: list[Trained] = []
    for folder, seed, model in found:
        label = folder.model
        if names.count(folder.model) > 1:
            label += f" seed {seed}" if seed is not None else f" {folder.id[:6]}"
        if any(other.label == label for other in out):
            label += f" {folder.id[:6]}"
        out.append(Trained(label, model.title, seed, folder, model, ResultFiles.of(folder.path).weights()))
    return out


@torch.no_grad()
def turn_outputs(trained: Trained, features: SessionFeatures, batch: int = 1024) -> Tensor:
    """f'_qry of every session: float32 [S, T, D], the last turn's repeated after a session's end.

    A model of concatenated captions has T = 1: its answer to the whole session.
    """
    model = trained.model
    take, parts = inputs_of(model, features), []
    for index in torch.arange(len(features), device=features.device).split(batch):
        queries, _, lengths = take(index)
        outputs = model(queries, lengths)
        turns = torch.arange(outputs.shape[1], device=outputs.device).expand(len(index), -1)
        rows = torch.minimum(turns, lengths[:, None] - 1)
        parts.append(outputs.gather(1, rows[..., None].expand(-1, -1, outputs.shape[2])))
    return torch.cat(parts)
