"""Runs of a spec with their options and metrics, as records or as a pandas frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests.errors import IncompleteError
from manifests.load import load_dataset, load_spec
from manifests.schema import RunSpec
from pipeline.core.workspace import Workspace
from pipeline.jobs.identities import RunIdentities
from pipeline.jobs.run_rows import run_row
from pipeline.jobs.specs import check_components


def records(
    spec: str | Path | RunSpec, data: str | Path = "data", out: str | Path = "out", *, overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return one record per run of the spec on its present data, and per subset of the test sessions.

    Keys: run, model, seed, state ("evaluated", "finished", "absent", ...), option.*, training.* (keys that differ from
    the defaults), epochs, seconds, parameters, validation.*, subset, n, and the metrics in percent. A run without a
    current evaluation has one record, without metrics. Raises IncompleteError if the features are missing or stale.
    """
    job = spec if isinstance(spec, RunSpec) else load_spec(str(spec), overrides)
    check_components(job)
    identities, found = RunIdentities(job, load_dataset(job, Path(data)), Workspace(Path(out))), []
    for run in identities.current_runs():
        row, state = run_row(identities.folder(run)), identities.state(run)
        base = {"run": row["id"], "model": run.asked, "seed": run.seed, "state": state.name}
        base |= {f"option.{key}": value for key, value in row["options"].items()}
        base |= {f"training.{key}": value for key, value in row["training"].items()}
        base |= {key: row[key] for key in ("epochs", "seconds", "parameters")}
        base |= {f"validation.{key}": value for key, value in row["validation"].items()}
        summary = identities.evaluation(run) if state.name == "evaluated" else None
        subsets = summary["metrics"] if summary else {}
        found += [base | {"subset": name} | metrics["overall"] for name, metrics in subsets.items()] or [base]
    return found


def results(
    spec: str | Path | RunSpec, data: str | Path = "data", out: str | Path = "out", *, overrides: Sequence[str] = ()
) -> Any:
    """Return ``records`` as a pandas DataFrame. Raises IncompleteError, with the install command, without pandas."""
    try:
        import pandas
    except ImportError:
        raise IncompleteError("`results` needs pandas: python -m pip install pandas; `records` needs nothing") from None
    return pandas.DataFrame(records(spec, data, out, overrides=overrides))
