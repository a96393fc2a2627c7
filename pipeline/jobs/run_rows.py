"""Rows of run folders (configuration, state, scores, size), and whether a run matches the present data of its spec."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manifests.commandline import folder_options
from manifests.errors import FashionNTMError, IncompleteError, ManifestError, Problem, nearest
from manifests.identity import flat
from manifests.load import load_dataset, recorded_spec, shipped
from manifests.schema import Training
from pipeline.core.workspace import Workspace
from pipeline.evaluation.files import ResultsError, load_summary
from pipeline.jobs.identities import RunIdentities
from pipeline.training.runs import IDENTITY_VERSION, UNSEALED, RunFolder, list_runs

_DEFAULTS = Training().model_dump(mode="json")
RUN_KEYS = ("title", "training", "models", "seeds", "references")  # of a spec: what its data does not depend on


class NotCheckedError(IncompleteError):
    """The data of a recorded spec is not available, so its runs cannot be checked."""


class Currency:
    """Loads the data of each spec that runs were recorded with once, from the datasets in ``data`` and the stores in ``out``."""

    def __init__(self, data: Path, out: Path):
        self.data, self.out, self.workspace = data, out, Workspace(out)
        self._known: dict[str, RunIdentities | IncompleteError] = {}

    def identities(self, record: Mapping[str, Any]) -> RunIdentities:
        """Return the identities of the recorded spec on the present data.

        Raises NotCheckedError if its data is not available, and IncompleteError if its features are missing or stale.
        """
        spec = record.get("spec")
        kept = {k: v for k, v in spec.items() if k not in RUN_KEYS} if isinstance(spec, dict) else spec
        key = json.dumps(kept, sort_keys=True)
        if key not in self._known:
            self._known[key] = self._load(spec)
        found = self._known[key]
        if isinstance(found, IncompleteError):
            raise found
        return found

    def _load(self, recorded: Any) -> RunIdentities | IncompleteError:
        try:
            spec = recorded_spec(recorded)
            word = spec.name if spec.name in shipped("runs") else f"{spec.name}.toml"
            spec = spec.model_copy(update={"given": shlex.join([word, *folder_options(self.data, self.workspace.out)])})
            dataset = load_dataset(spec, self.data)
        except (FashionNTMError, ValueError):
            return NotCheckedError(f"not checked: its data is not in {self.data}")
        try:
            return RunIdentities(spec, dataset, self.workspace)
        except IncompleteError as error:
            return error

    def of(self, record: Mapping[str, Any]) -> str:
        """Return "current", "of other data", "of an earlier version", or why the run cannot be compared."""
        if record.get("identity", {}).get("version") != IDENTITY_VERSION:
            return "its identity is of an earlier version: train it again to use it"
        try:
            found = self.identities(record)
        except NotCheckedError as error:
            return str(error)
        except IncompleteError:
            return "its data changed since it was extracted: `extract`, then see"
        return "current" if found.run_of(record["identity"]) is not None else "of other data"


def run_row(folder: RunFolder) -> dict[str, Any]:
    """Return the row of a run: everything that its folder records, without loading any data.

    Keys: id, dataset, model, spec, state, damage, date (ISO, UTC), seed, options, training (keys that differ from the
    defaults), epochs, seconds, parameters, validation and test (metrics by subset, or {}), bytes, path.
    """
    row: dict[str, Any] = {"id": folder.id, "dataset": folder.dataset, "model": folder.model, "state": folder.state}
    row["damage"] = folder.damage if row["state"] == "damaged" else ""
    record: dict[str, Any] = {}
    with suppress(FashionNTMError, OSError):
        record = folder.record()
    identity, done = record.get("identity") or {}, record.get("finished") or {}
    files = [file for file in folder.path.rglob("*") if file.is_file()]
    changed = max((file.stat().st_mtime for file in files if file.name in ("seal.json", "run.json")), default=0.0)
    return row | {
        "spec": (record.get("spec") or {}).get("name", ""),
        "seed": identity.get("seed"),
        "date": datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds") if changed else "",
        "options": (identity.get("model") or {}).get("options") or {},
        "training": {k: v for k, v in (identity.get("training") or {}).items() if _DEFAULTS.get(k) != v},
        **{key: done.get(key) for key in ("epochs", "seconds", "parameters")},
        "validation": done.get("validation") or {},
        "test": metrics_by_subset(folder),
        "store": identity.get("store", ""),
        "sealed": folder.sealed,
        "bytes": sum(file.stat().st_size for file in files),
        "path": str(folder.path),
    }


def listed_run(folder: RunFolder, currency: Currency) -> dict[str, Any]:
    """Return ``run_row`` with "current", or why not; "" for a run that is not finished."""
    row = run_row(folder)
    return row | {"current": currency.of(folder.record()) if row["state"] == "finished" else ""}


def listed_runs(runs: Path, currency: Currency) -> list[dict[str, Any]]:
    """Return ``run_row`` of every run below ``runs``, with its name, "current" (or why not) and a line "about" it."""
    rows = []
    for folder in list_runs(runs):
        rows.append(listed_run(folder, currency) | {"name": str(folder.path.relative_to(runs))})
        rows[-1]["about"] = _about(rows[-1])
    return rows


def _about(row: Mapping[str, Any]) -> str:
    if row["state"] != "finished":
        return row["state"] + (f": {row['damage']}" if row["damage"] else "")
    seed = "" if row["seed"] is None else f", seed {row['seed']}"
    about = f"finished, {row['epochs']} epochs in {row['seconds']:.1f} s{seed}, {row['current']}"
    return about + ("" if row["sealed"] else f", {UNSEALED}")


def chosen(rows: Sequence[dict[str, Any]], where: Sequence[str] = (), sort: str = "") -> list[dict[str, Any]]:
    """Return the rows that fit every ``key=value`` of ``where``, sorted by the key ``sort`` ("-key": descending).

    Keys are those of the rows; nested ones are dotted (``options.stages``, ``test.all.R@5``), and ``validation`` and
    ``test`` stand for their mean. Rows without a value come last. Raises ManifestError for a key that no row has.
    """
    values = [flat(row) for row in rows]
    known = dict.fromkeys(key for row in values for key in row)

    def key_of(name: str, option: str) -> str:
        name = {"validation": "validation.mean", "test": "test.all.mean"}.get(name, name)
        if rows and name not in known:
            raise ManifestError([Problem(option, name, "no run has this key", nearest(name, known))])
        return name

    kept = list(zip(rows, values, strict=True))
    for word in where:
        name, equals, value = word.partition("=")
        if not equals:
            raise ManifestError([Problem("--where", word, "not of the form KEY=VALUE", "e.g. model=cm_ntm")])
        name = key_of(name, "--where")
        kept = [(row, own) for row, own in kept if str(own.get(name)) == value]
    if sort:
        name = key_of(sort.removeprefix("-"), "--sort")
        have = [pair for pair in kept if pair[1].get(name) is not None]
        numbers = all(isinstance(own[name], int | float) for _, own in have)
        have.sort(key=lambda pair: pair[1][name] if numbers else str(pair[1][name]), reverse=sort.startswith("-"))
        kept = have + [pair for pair in kept if pair[1].get(name) is None]
    return [row for row, _ in kept]


def metrics_by_subset(folder: RunFolder) -> dict[str, dict[str, float]]:
    """Return subset -> overall metrics of the last evaluation of all test sessions; {} without an intact one."""
    try:
        summary = load_summary(folder.path / "summary.json")
    except ResultsError:
        return {}
    return {name: found["overall"] for name, found in summary["metrics"].items()}


def differing(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each run its options and training keys that differ among the listed runs of its model."""
    options = [{**row["options"], **{f"training.{k}": v for k, v in row["training"].items()}} for row in rows]
    out = []
    for row, own in zip(rows, options, strict=True):
        same = [other for other, listed in zip(options, rows, strict=True) if listed["model"] == row["model"]]
        keys = dict.fromkeys(key for other in same for key in other)
        out.append({k: own.get(k) for k in keys if any(other.get(k) != own.get(k) for other in same)})
    return out
