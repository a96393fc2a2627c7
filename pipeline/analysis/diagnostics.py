"""Figures of the training diagnostics of runs in an output folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manifests.errors import IncompleteError, ManifestError, Problem, nearest
from pipeline.analysis.drawing import check_suffixes
from pipeline.analysis.plot_diagnostics import Diagnosed, broken_at, draw_diagnostics
from pipeline.training.runs import RunFolder, list_runs


def find_run(given: str, runs: Path) -> RunFolder:
    """Return the run folder given by path, id or first digits of the id. Raises ManifestError with the nearest id."""
    if (Path(given) / "run.json").is_file():
        return RunFolder(Path(given))
    known = list_runs(runs)
    found = [run for run in known if given in (run.id, f"{run.dataset}/{run.model}/{run.id}")]
    found = found or [run for run in known if run.id.startswith(given)]
    if len(found) != 1:
        what = f"{len(found)} runs begin with {given!r}" if found else f"no run {given!r} in {runs}"
        hint = ", ".join(run.id for run in found) if found else nearest(given, [run.id for run in known])
        raise ManifestError([Problem("--run", "", what, f"{hint}; `ls runs` lists them")])
    return found[0]


def diagnostics_figure(given: Sequence[str], runs: Path, files: Sequence[Path]) -> str:
    """Draw the diagnostics of these runs side by side to ``files`` (default: in the first run's folder).

    Returns one line per run and file. Raises IncompleteError for a run trained without diagnostics.
    """
    folders = [find_run(name, runs) for name in given]
    paths = list(files) or [folders[0].path / f"diagnostics{suffix}" for suffix in (".png", ".svg")]
    check_suffixes(paths)
    diagnosed, lines = [], []
    for folder in folders:
        records = folder.diagnoses()
        if not records:
            raise IncompleteError(
                f"run {folder.id} ({folder.model}) has no diagnostics: train it with --diagnostics"
                + (" --force" if folder.state == "finished" else "")
            )
        diagnosed.append(Diagnosed(_title(folder), records))
        stages = [f"stage {n}: {'not yet' if e is None else f'epoch {e}'}" for n, e in enumerate(broken_at(records), 1)]
        lines.append(f"{folder.model} {folder.id}: the symmetry between rows is broken from {', '.join(stages)}")
    draw_diagnostics(diagnosed, paths)
    return "\n".join([*lines, *(f"written: {path}" for path in paths)])


def _title(folder: RunFolder) -> str:
    """Return model, initialization and seed, as far as run.json has them."""
    record = folder.record() if folder.run_file.is_file() else {}
    identity = record.get("identity", {})
    options = identity.get("model", {}).get("options", {})
    words = [folder.model, *(f"{key} {options[key]}" for key in ("init",) if key in options)]
    return ", ".join(words + ([f"seed {identity['seed']}"] if identity.get("seed") is not None else []))
