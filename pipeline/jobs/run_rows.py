"""One row per run folder: configuration, state, scores and size, for listings, data frames and model cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from manifests.errors import FashionNTMError
from manifests.schema import Training
from pipeline.evaluation.files import ResultsError, load_summary
from pipeline.training.runs import RunFolder


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
        "training": _changed(identity.get("training") or {}),
        **{key: done.get(key) for key in ("epochs", "seconds", "parameters")},
        "validation": done.get("validation") or {},
        "test": test_metrics(folder),
        "store": identity.get("store", ""),
        "sealed": folder.sealed,
        "bytes": sum(file.stat().st_size for file in files),
        "path": str(folder.path),
    }


def test_metrics(folder: RunFolder) -> dict[str, dict[str, float]]:
    """Return subset -> overall metrics of the last evaluation of all test sessions; {} without an intact one."""
    try:
        summary = load_summary(folder.summary_file)
    except ResultsError:
        return {}
    return {name: found["overall"] for name, found in summary["metrics"].items()}


def differing(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each run its options and training keys that differ among the listed runs of its model."""
    flat = [{**row["options"], **{f"training.{k}": v for k, v in row["training"].items()}} for row in rows]
    out = []
    for row, own in zip(rows, flat, strict=True):
        same = [other for other, listed in zip(flat, rows, strict=True) if listed["model"] == row["model"]]
        keys = dict.fromkeys(key for other in same for key in other)
        out.append({k: own.get(k) for k in keys if any(other.get(k) != own.get(k) for other in same)})
    return out


def _changed(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training keys that differ from the defaults."""
    default = Training().model_dump(mode="json")
    return {key: value for key, value in training.items() if default.get(key) != value}
