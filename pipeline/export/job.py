"""Export a run by name, with the composer of its spec."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from manifests.errors import FashionNTMError, IncompleteError
from manifests.load import load_dataset, recorded_spec
from pipeline.composition.composers.base import Composer
from pipeline.core.workspace import Workspace
from pipeline.export.run import ExportedRun, Format, export_run
from pipeline.jobs.managed_runs import run_named
from pipeline.training.runs import RunFolder
from pipeline.views.retrieval.live import store_composer


def export_named(
    given: str, to: Path, form: Format, turns: int, data: Path, out: Path, log: Callable[[str], None]
) -> ExportedRun:
    """Export the run that ``given`` names. Without its dataset, the composer is left out, with the reason in the log.

    Raises IncompleteError for a run that is not finished, and as ``export_run``.
    """
    folder = run_named(given, out / "runs")
    if folder.state != "finished":
        raise IncompleteError(f"run {folder.id} is {folder.state}: finish it with `train` first")
    return export_run(folder, _composer(folder, data, log), to, form, turns)


def _composer(folder: RunFolder, data: Path, log: Callable[[str], None]) -> Composer | None:
    try:
        spec = recorded_spec(folder.record().get("spec"))
        return store_composer(spec, load_dataset(spec, data), Workspace(folder.path.resolve().parents[3]))
    except (FashionNTMError, ValueError) as error:
        log(f"the composer is left out: {str(error).splitlines()[0]}")
        return None
