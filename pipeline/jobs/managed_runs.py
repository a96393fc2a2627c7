"""Runs that a user names (by path, id, first digits of an id, or memory model): look up, show, compare and remove them."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cache.errors import StoreBusyError
from cache.lease import Lease
from manifests.errors import IncompleteError, ManifestError, Problem, nearest
from manifests.identity import digest, flat
from pipeline.core.text_table import aligned
from pipeline.core.workspace import ASIDE
from pipeline.evaluation.files import ResultFiles
from pipeline.jobs.run_rows import Currency, chosen, listed_run, listed_runs, run_row
from pipeline.training.runs import RunFolder, list_runs

METRICS = ("R@1", "R@5", "R@8", "R@10", "R@50", "MRR", "mean", "n")


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
    kinds: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for run in runs:
        identity = {k: v for k, v in run.record()["identity"].items() if k != "seed"}
        kinds.setdefault(digest(identity), (flat(identity), []))[1].append(run.id)
    if len(kinds) < 2:
        return
    differ, groups = _differing([values for values, _ in kinds.values()]), []
    for values, ids in kinds.values():
        told = ", ".join(f"{key.removeprefix('model.options.')} {_short(values.get(key))}" for key in differ)
        groups.append(f"{','.join(ids)} ({told})")
    what, fix = f"{len(kinds)} configurations of this model", f"give the ids of one: {'; '.join(groups)}"
    raise ManifestError([Problem("run", name, what, fix)])


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return key -> values of all rows, None where a row lacks the key."""
    return {key: [row.get(key) for row in rows] for key in dict.fromkeys(k for row in rows for k in row)}


def _differing(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {key: values for key, values in _columns(rows).items() if len(set(map(repr, values))) > 1}


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)


def results_of(run: RunFolder, view: str) -> ResultFiles:
    return ResultFiles(run.path, run.path / "views" / view if view else run.path)


def seed_of(run: RunFolder) -> int | None:
    return run.record()["identity"].get("seed")


def show_run(given: str, data: Path, out: Path) -> dict[str, Any]:
    """Return what a run records: its row, identity, execution, spec and files. Raises ManifestError for no such run."""
    folder = run_named(given, out / "runs")
    row = listed_run(folder, Currency(data, out))
    record = {} if row["state"] in ("damaged", "incomplete") else folder.record()
    files = {str(f.relative_to(folder.path)): f.stat().st_size for f in sorted(folder.path.rglob("*")) if f.is_file()}
    kept = ("identity", "execution", "finished", "failed")
    return row | {"files": files} | {key: record.get(key) for key in kept}


def show_text(found: Mapping[str, Any]) -> str:
    """Return the run as lines of name and value, with a table of its scores."""
    state = ", ".join(filter(None, [found["state"], found["current"], found["damage"]]))
    plain = ("dataset", "model", "spec", "seed", "date", "epochs", "seconds", "parameters")
    pairs = [("run", found["id"]), ("state", state), *((key, found[key]) for key in plain)]
    pairs += [(f"option {key}", value) for key, value in found["options"].items()]
    pairs += [(f"training {key}", value) for key, value in found["training"].items()]
    pairs += [("store", found["store"]), ("path", found["path"]), ("size", f"{found['bytes']:,} bytes")]
    lines = aligned([[str(key), _text(value)] for key, value in pairs if value not in (None, "")], left=2)
    scores = {"validation": found["validation"], **{f"test, {name}": m for name, m in found["test"].items()}}
    columns = [m for m in METRICS if any(m in values for values in scores.values())]
    rows = [[name, *(_score(values.get(m), m) for m in columns)] for name, values in scores.items() if values]
    return "\n".join([*lines, *(["", *aligned([["", *columns], *rows])] if rows else [])])


def side_by_side(names: Sequence[str], data: Path, out: Path) -> dict[str, Any]:
    """Return {"runs": ids, "settings": key -> values that differ, "scores": key -> values}, in the order of ``names``."""
    currency = Currency(data, out)
    rows = [listed_run(run_named(name, out / "runs"), currency) for name in names]
    kept = ("dataset", "model", "spec", "seed", "options", "training", "store", "state", "current")
    settings = [flat({key: row[key] for key in kept}) for row in rows]
    costs = [{key: row[key] for key in ("epochs", "seconds", "parameters")} for row in rows]
    scores = [flat({"validation": row["validation"], "test": row["test"]}) for row in rows]
    ids = [row["id"] for row in rows]
    return {"runs": ids, "settings": _differing(settings), "scores": _columns(costs) | _columns(scores)}


def compare_text(found: Mapping[str, Any]) -> str:
    head = ["", *found["runs"]]
    settings = [[key, *map(_text, values)] for key, values in found["settings"].items()]
    scores = [[key, *(_score(v, key) for v in values)] for key, values in found["scores"].items()]
    return "\n".join(aligned([head, *settings, *scores]))


def remove_runs(names: Sequence[str], where: Sequence[str], data: Path, out: Path, dry_run: bool) -> dict[str, Any]:
    """Remove runs by name, or all that fit ``where`` (``run_rows.chosen``); return their names and bytes.

    Raises IncompleteError, before anything is removed, if one of them is being trained.
    """
    runs = out / "runs"
    if where:
        folders = [RunFolder(runs / row["name"]) for row in chosen(listed_runs(runs, Currency(data, out)), where)]
    else:
        folders = list(dict.fromkeys(run_named(name, runs) for name in names))
    rows = [run_row(folder) for folder in folders]
    if not dry_run:
        with ExitStack() as leases:
            for folder in folders:
                try:
                    leases.callback(Lease(folder.path).release)
                except StoreBusyError as error:
                    what = f"run {folder.id} is being trained, so nothing was removed"
                    raise IncompleteError(f"{what}: {error}") from None
            removed = [_put_aside(folder.path) for folder in folders]
        for aside in removed:
            shutil.rmtree(aside)
    found = [{"run": row["id"], "model": row["model"], "path": row["path"], "bytes": row["bytes"]} for row in rows]
    return {"dry_run": dry_run, "removed": found, "bytes": sum(row["bytes"] for row in rows)}


def removed_text(found: Mapping[str, Any]) -> str:
    would = "would be " if found["dry_run"] else ""
    lines = [f"{run['model']} {run['run']}  {run['bytes']:,} bytes  {run['path']}" for run in found["removed"]]
    return "\n".join([*lines, f"{len(lines):,} runs {would}removed, {found['bytes']:,} bytes"])


def _put_aside(path: Path) -> Path:
    """Move the folder out of the listing at once, before it is deleted, so that a kill leaves no half run."""
    aside = path.resolve().parents[3] / f"{ASIDE}{path.name}-{secrets.token_hex(4)}"
    path.rename(aside)
    return aside


def _text(value: Any) -> str:
    return "-" if value is None else value[:12] + "..." if isinstance(value, str) and len(value) == 64 else str(value)


def _score(value: Any, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if isinstance(value, int) or name.rpartition(".")[2] == "n" else f"{value:.1f}"
