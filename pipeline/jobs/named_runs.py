"""Lookup of the runs that a user names: by path, id, first digits of an id, or memory model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests.errors import ManifestError, Problem, nearest
from manifests.identity import digest, flat
from pipeline.evaluation.files import ResultFiles
from pipeline.training.runs import RunFolder, list_runs


def run_named(given: str, runs: Path) -> RunFolder:
    """Return the run folder given by path, id or first digits of the id. Raises ManifestError with the nearest id."""
    if (Path(given) / "run.json").is_file():
        return RunFolder(Path(given))
    known = list_runs(runs)
    found = _by_id(given, known)
    if len(found) != 1:
        what = f"{len(found)} runs begin with {given!r}" if found else f"no run {given!r} in {runs}"
        hint = ", ".join(run.id for run in found) if found else nearest(given, [run.id for run in known])
        raise ManifestError([Problem("RUN", "", what, f"{hint}; `ls runs` lists them")])
    return found[0]


def _by_id(word: str, runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Return the runs with this id or path below ``runs``, else those whose id begins with it."""
    exact = [run for run in runs if word in (run.id, f"{run.dataset}/{run.model}/{run.id}")]
    return exact or [run for run in runs if run.id.startswith(word)]


def runs_named(name: str, runs: Sequence[RunFolder], view: str = "") -> list[RunFolder]:
    """Return the run folders matching ``name``, ordered by seed; for a model's name, only evaluated runs."""
    chosen = []
    for word in name.split(","):
        word = word.strip().strip("/")
        hits = _by_id(word, runs) if word else []
        if not hits:
            mine = [run for run in runs if word in (run.model, f"{run.dataset}/{run.model}")]
            hits = [run for run in mine if run.state == "finished"]
            hits = [run for run in hits if results_of(run, view).results.is_file()] or hits
            _one_configuration(word, hits)
        elif len(hits) > 1:
            ids = ", ".join(run.id for run in hits)
            raise ManifestError([Problem("run", word, f"matches {len(hits)} runs: {ids}", "give more digits")])
        if not hits:
            known = dict.fromkeys([*(run.model for run in runs), *(run.id for run in runs)])
            hint = nearest(word, list(known)[:40])
            raise ManifestError([Problem("run", word, "no run or memory model of this name", hint)])
        chosen += hits
    return sorted(dict.fromkeys(chosen), key=lambda run: -1 if (seed := seed_of(run)) is None else seed)


def _one_configuration(name: str, runs: Sequence[RunFolder]) -> None:
    """Check that the runs of a model's name have one configuration, so that they differ only in the seed."""
    kinds: dict[str, list[str]] = {}
    values: dict[str, dict[str, Any]] = {}
    for run in runs:
        identity = {k: v for k, v in run.record()["identity"].items() if k != "seed"}
        kind = digest(identity)
        kinds.setdefault(kind, []).append(run.id)
        values[kind] = flat(identity)
    if len(kinds) < 2:
        return
    keys = dict.fromkeys(key for found in values.values() for key in found)
    differ = [key for key in keys if len({repr(found.get(key)) for found in values.values()}) > 1]
    groups = []
    for kind, ids in kinds.items():
        told = ", ".join(f"{key.removeprefix('model.options.')} {_short(values[kind].get(key))}" for key in differ)
        groups.append(f"{','.join(ids)} ({told})")
    what, fix = f"{len(kinds)} configurations of this model", f"give the ids of one: {'; '.join(groups)}"
    raise ManifestError([Problem("run", name, what, fix)])


def _short(value: Any) -> str:
    """Format a value briefly; a digest by its first digits."""
    return value[:12] if isinstance(value, str) else json.dumps(value)


def results_of(run: RunFolder, view: str) -> ResultFiles:
    return ResultFiles(run.path, run.path / "views" / view if view else run.path)


def seed_of(run: RunFolder) -> int | None:
    return run.record()["identity"].get("seed")
