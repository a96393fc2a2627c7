"""Jobs that span both stages: run a spec from start to end, report its progress, describe its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cache import Store, StoreError
from manifests.errors import IncompleteError
from manifests.leaks import subset_counts
from manifests.schema import Dataset, RunSpec
from pipeline.composition.request import composer_request
from pipeline.core.binding import StaleError
from pipeline.core.workspace import Workspace, removal_leftovers
from pipeline.extraction.fitting.job import fit_extractor_spec, needs_fitting
from pipeline.jobs.experiment import Experiment, Log, silent
from pipeline.jobs.identities import Run, asked_runs, what_helps
from pipeline.jobs.stage1 import extract_spec, fit_composer_spec
from pipeline.jobs.stage2 import evaluate, outcome_text, summary_text, train


def run_spec(
    spec: RunSpec,
    dataset: Dataset,
    workspace: Workspace,
    device: str,
    log: Log,
    models: Sequence[str],
    seeds: Sequence[int] | None,
) -> str:
    """Extract, fit the composer, train and evaluate; finished work is reused. Return the metrics as text."""
    runs = asked_runs(spec, models, seeds)  # an unknown model is known before the extraction
    make_features(spec, dataset, workspace, device, log)
    experiment = Experiment(spec, dataset, workspace, device, log)
    _ = experiment.test  # a test split without features is known before the training
    for run, outcome in train(experiment, runs):
        log(outcome_text(run, outcome))
    return summary_text(evaluate(experiment, experiment.current_runs(models, seeds)))


def make_features(
    spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str = "auto", log: Log = silent
) -> None:
    """Run all of stage 1: extract, and fit the composer if it is trainable; finished work is reused.

    If the spec asks for a fitted single-turn model, it is fitted first.
    """
    if needs_fitting(spec):
        log(fit_extractor_spec(spec, dataset, workspace, device, tell=log).text())
    first = extract_spec(spec, dataset, workspace, device)
    log(first.text())
    if first.composed is None and first.next_command == spec.command("fit-composer"):
        line = "composer epoch {epoch:.0f}: loss {loss:.4f}"
        log(fit_composer_spec(spec, dataset, workspace, lambda metrics: log(line.format(**metrics))).text())


@dataclass(frozen=True)
class Status:
    """Progress of a spec. ``runs``: model -> seed -> state ("finished", "evaluated", "absent", ...)."""

    spec: str
    stage1: str  # "done", or the missing part and the command to run
    store: str
    rows: dict[str, int]
    runs: dict[str, dict[int, str]]
    leftovers: dict[str, int] = field(default_factory=dict)  # folders of interrupted removals -> bytes

    @property
    def complete(self) -> bool:
        states = [state for seeds in self.runs.values() for state in seeds.values()]
        return self.stage1 == "done" and all(state == "evaluated" for state in states)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "complete": self.complete}

    def text(self) -> str:
        lines = [f"spec     {self.spec}", f"stage 1  {self.stage1}"]
        if self.store:
            lines.append(f"store    {self.store}: " + ", ".join(f"{table} {n:,}" for table, n in self.rows.items()))
        for model, seeds in self.runs.items():
            lines.append(f"{model:8} " + ", ".join(f"seed {seed}: {state}" for seed, state in seeds.items()))
        if self.leftovers:
            found = f"{len(self.leftovers):,} folders of interrupted removals, {sum(self.leftovers.values()):,} bytes"
            lines.append(f"debris   {found}: `cache gc` removes them")
        return "\n".join([*lines, "complete" if self.complete else "incomplete"])


def status_of(spec: RunSpec, dataset: Dataset, workspace: Workspace) -> Status:
    """Read the progress of ``spec`` from its store and run folders, without loading the single-turn model."""
    runs, leftovers = asked_runs(spec), removal_leftovers(workspace.out)

    def status(stage1: str, store: Store | None, states: Iterable[tuple[Run, str]]) -> Status:
        found: dict[str, dict[int, str]] = {run.asked: {} for run in runs}
        for run, state in states:
            found[run.asked][run.seed] = state
        rows = {name: table.rows for name, table in store.tables.items()} if store else {}
        return Status(spec.name, stage1, str(store.path) if store else "", rows, found, leftovers)

    try:
        experiment = Experiment(spec, dataset, workspace, "cpu")
    except StaleError as error:
        return status(f"stale: {error}", None, ((run, "stale") for run in runs))
    except IncompleteError as error:
        begun = _begun(spec, dataset, workspace)
        first = str(error) if begun is None else f"begun, not finished: {what_helps(begun, spec)}"
        return status(first, begun, ((run, "absent") for run in runs))
    fit, validation = experiment.found
    first, left_out = "done", len(fit.reasons) + (len(validation.reasons) if validation is not None else 0)
    if left_out:
        first = f"done, but {left_out} train sessions lack features: {experiment.what_helps}"
    if dataset.split("test") and not experiment.found_test.sessions:
        first = f"done, but no test session has all of its features: {experiment.what_helps}"
    return status(first, experiment.store, ((run, str(experiment.state(run))) for run in experiment.current_runs()))


def _begun(spec: RunSpec, dataset: Dataset, workspace: Workspace) -> Store | None:
    """Return the newest store of an interrupted extraction with this dataset and extractor name."""
    if workspace.note(spec) is not None or workspace.earlier_records(spec):
        return None
    folders = (workspace.stores / dataset.name).glob(f"{spec.extractor.name}-*")
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            return Store.open(folder, verify="header")
        except StoreError:  # damaged: reported by `extract`
            continue
    return None


def describe(spec: RunSpec, dataset: Dataset) -> dict[str, Any]:
    """Return counts and parts of a spec whose files have been checked."""
    return {
        "spec": spec.name,
        "dataset": dataset.name,
        "images": len(dataset.images),
        "turn_targets": list(dataset.turn_targets),
        "sessions": {split: dataset.turn_counts(split) for split in ("train", "test")},
        "galleries": {f"{g.category}/{g.split}": len(g.images) for g in dataset.galleries},
        "test_sessions_by_leak": subset_counts(dataset),
        "extractor": spec.extractor.name,
        "composer": composer_request(spec).name,
        "models": list(spec.models),
        "seeds": list(spec.seeds),
        "notes": list(dataset.notes),
    }


def description_text(found: Mapping[str, Any]) -> str:
    lines = [f"valid: spec {found['spec']}, dataset {found['dataset']}, {found['images']:,} images"]
    for split, counts in found["sessions"].items():
        turns = ", ".join(f"{count:,} of {n} turns" for n, count in counts.items())
        lines.append(f"{split:5}  {turns or 'no sessions'}")
    kinds = {"next": "the next turn's reference", "final": "the session's final target"}
    if found["turn_targets"]:
        lines.append("each turn leads to " + ", or by session to ".join(kinds[k] for k in found["turn_targets"]))
    lines += [f"gallery {name}: {size:,} images" for name, size in found["galleries"].items()]
    models = ", ".join(found["models"]) or "none"
    lines.append(f"extractor {found['extractor']}, composer {found['composer']}, models {models}")
    for category, counts in found["test_sessions_by_leak"].items():
        lines.append(f"test {category}: " + ", ".join(f"{subset} {n:,}" for subset, n in counts.items()))
    return "\n".join(lines)
