"""Lookup of the runs named in ``compare`` and of their test sessions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manifests.errors import FashionNTMError, IncompleteError, ManifestError, Problem, nearest
from manifests.identity import digest
from manifests.load import load_dataset
from manifests.schema import RunSpec, Session
from pipeline.analysis.compare import CompareError, Comparison, Method, compare
from pipeline.core.binding import StaleError
from pipeline.evaluation.files import ResultFiles, load_results
from pipeline.jobs.currency import Currency, NotCheckedError
from pipeline.training.errors import RunError
from pipeline.training.runs import RunFolder, list_runs


def compare_runs(a: str, b: str, data: Path, out: Path, top: int = 10, view: str = "") -> Comparison:
    """Compare ``b`` with ``a``: each a run id (or its first digits), comma-separated ids, or a memory model's name.

    Raises ManifestError for an unknown run, CompareError for incompatible runs, IncompleteError for a run without an
    evaluation.
    """
    runs = list_runs(out / "runs")
    found = [_method(name, chosen_runs(name, runs, view), view) for name in (a, b)]
    records = [folders[0].record() for _, folders in found]
    stores = [record["identity"]["store"] for record in records]
    notes = [] if stores[0] == stores[1] else ["The runs read different stores: not the memory models alone differ."]
    datasets = [record["dataset"] for record in records]
    if datasets[0] != datasets[1]:
        raise CompareError(f"runs on {datasets[0]} and on {datasets[1]}: compare runs of one dataset")
    sessions, note = _sessions(records[0].get("spec"), data)
    for (_, folders), record in zip(found, records, strict=True):
        note += _current(folders, record, data, out, view)
    return compare(found[0][0], found[1][0], sessions, top, [*notes, *note])


def chosen_runs(name: str, runs: Sequence[RunFolder], view: str = "") -> list[RunFolder]:
    """Return the run folders matching ``name``, ordered by seed; for a model's name, only evaluated runs."""
    chosen = []
    for word in name.split(","):
        word = word.strip().strip("/")
        hits = [
            run for run in runs if word and (run.id.startswith(word) or f"{run.dataset}/{run.model}/{run.id}" == word)
        ]
        if not hits:
            hits = [
                run for run in runs if word in (run.model, f"{run.dataset}/{run.model}") and run.state == "finished"
            ]
            hits = [run for run in hits if _files(run, view).results.is_file()] or hits
            _one_configuration(word, hits)
        elif len(hits) > 1:
            ids = ", ".join(run.id for run in hits)
            raise ManifestError([Problem("run", word, f"stands for {len(hits)} runs: {ids}", "give more digits")])
        if not hits:
            known = dict.fromkeys([*(run.model for run in runs), *(run.id for run in runs)])
            raise ManifestError(
                [Problem("run", word, "no run or memory model of this name", nearest(word, list(known)[:40]))]
            )
        chosen += hits
    return sorted(dict.fromkeys(chosen), key=lambda run: _seed(run) if _seed(run) is not None else -1)


def _one_configuration(name: str, runs: Sequence[RunFolder]) -> None:
    """Check that the runs of a model's name have one configuration, so that they differ only in the seed."""
    kinds: dict[str, list[str]] = {}
    values: dict[str, dict[str, Any]] = {}
    for run in runs:
        identity = {k: v for k, v in run.record()["identity"].items() if k != "seed"}
        kind = digest(identity)
        kinds.setdefault(kind, []).append(run.id)
        values[kind] = _flat(identity)
    if len(kinds) < 2:
        return
    keys = dict.fromkeys(key for found in values.values() for key in found)
    differ = [key for key in keys if len({repr(found.get(key)) for found in values.values()}) > 1]
    groups = []
    for kind, ids in kinds.items():
        told = ", ".join(f"{key.removeprefix('model.options.')} {_short(values[kind].get(key))}" for key in differ)
        groups.append(f"{','.join(ids)} ({told})")
    raise ManifestError(
        [
            Problem(
                "run", name, f"{len(kinds)} configurations of this model", f"give the ids of one: {'; '.join(groups)}"
            )
        ]
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted keys, e.g. {"model.options.stages": 2}."""
    found: dict[str, Any] = {}
    for key, part in value.items():
        found |= _flat(part, f"{prefix}{key}.") if isinstance(part, Mapping) else {f"{prefix}{key}": part}
    return found


def _short(value: Any) -> str:
    """Format a value briefly; a digest by its first digits."""
    return value[:12] if isinstance(value, str) else json.dumps(value)


def _files(run: RunFolder, view: str) -> ResultFiles:
    return ResultFiles(run.path, run.path / "views" / view if view else run.path)


def _seed(run: RunFolder) -> int | None:
    return run.record()["identity"].get("seed")


def _method(name: str, folders: Sequence[RunFolder], view: str) -> tuple[Method, list[RunFolder]]:
    evaluations = []
    for run in folders:
        files = _files(run, view)
        if run.damage:
            raise RunError(run.damage)
        if not files.results.is_file():
            what = f" in view {view}" if view else ""
            raise IncompleteError(f"run {run.id} ({run.model}) is not evaluated{what}: run `evaluate` or `ablate`")
        evaluations.append(load_results(files.results))
    if len({e.session_ids for e in evaluations}) > 1:
        raise CompareError(f"{name}: its runs were tested on different sessions: name runs of one spec")
    options = folders[0].record()["identity"]["model"]["options"]
    shown = json.dumps(options, ensure_ascii=False) if options else ""
    label = f"{folders[0].model} {shown}".strip()
    ids, seeds = tuple(run.id for run in folders), tuple(_seed(run) for run in folders)
    return Method(label, ids, seeds, tuple(evaluations)), list(folders)


def _current(folders: Sequence[RunFolder], record: Mapping[str, Any], data: Path, out: Path, view: str) -> list[str]:
    """Return a note if the data is unavailable. Raises StaleError if a run or its evaluation is not of ``data``."""
    currency = Currency(data, out)
    try:
        found = currency.identities(record)
    except NotCheckedError as error:
        return [f"Whether the runs are of the present data is {error}."]
    name = found.spec.name
    for folder in folders:
        run = found.run_of(folder.record()["identity"])
        if run is None:
            raise StaleError(
                f"run {folder.id} ({folder.model}) is of other data than {data} holds now: run `{currency.command('run', name)}`"
            )
        files = _files(folder, view)
        if changed := files.stale(found.evaluation_identity(run, files.view())):
            raise StaleError(
                f"the evaluation of run {folder.id} ({folder.model}) is of other data ({'; '.join(changed)}): "
                f"run `{currency.command('evaluate', name, '--model', folder.model)}`"
            )
    return []


def _sessions(spec: object, data: Path) -> tuple[tuple[Session, ...], list[str]]:
    """Return the test sessions of the run's recorded spec; none, with a note, if its data is unavailable."""
    try:
        return load_dataset(RunSpec.model_validate(spec), data).split("test"), []
    except (FashionNTMError, ValueError):
        return (), [f"The dialogues are not in {data}: give --data to see the feedback texts."]
