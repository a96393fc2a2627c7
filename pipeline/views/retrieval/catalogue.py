"""Memory models for a catalog without sessions: runs of other datasets on the same features, or untrained averages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manifests.errors import FashionNTMError, ManifestError, Problem
from pipeline.jobs.experiment import Experiment
from pipeline.training.dialogue import weights_digest
from pipeline.training.models import build_model
from pipeline.training.runs import RunFolder, list_runs
from pipeline.views.retrieval.trained import Trained, load_trained, run_by_id

UNTRAINED = "untrained"
ALPHA = 0.7  # of EWMA, unless the spec sets it


def catalogue_models(experiment: Experiment, ids: Sequence[str] = ()) -> list[Trained]:
    """Return finished runs, of any dataset, on features with the fingerprint of the experiment's store; else EWMA and last.

    ``ids``: only these runs, by id, first digits or folder. Raises ManifestError for an id that matches none or
    several runs, and for a run on other features.
    """
    known = [f for f in list_runs(experiment.workspace.runs) if f.state == "finished"]
    fitting = [f for f in known if _store_of(f) == experiment.store.fingerprint]
    if not ids:
        return load_trained(fitting, experiment.device) or untrained(experiment)
    there = "on these features there are: " + (", ".join(f"{f.model} {f.id}" for f in fitting) or "none")
    chosen = []
    for wanted in dict.fromkeys(ids):
        folder = RunFolder(Path(wanted).resolve())
        if folder.state != "finished":
            folder = run_by_id(wanted, known, there)
        if _store_of(folder) != experiment.store.fingerprint:
            what = (
                f"the run reads features {_store_of(folder)[:12]}, the catalog has {experiment.store.fingerprint[:12]}"
            )
            fix = "use the run's extractor, precision and composer (with weights = its folder) in the catalog's spec"
            raise ManifestError([Problem("--run", wanted, what, fix)])
        chosen.append(folder)
    return load_trained(chosen, experiment.device)


def untrained(experiment: Experiment) -> list[Trained]:
    """Return EWMA, with alpha of the spec or 0.7, and the last turn alone: models that need no training."""
    dim, found = experiment.store.tables["target"].dim, []
    for name, options in (("ewma", {"alpha": ALPHA}), ("last", {})):
        given = {k: v for k, v in experiment.spec.models.get(name, {}).items() if k != "training"}
        model = build_model(name, options | given, dim).to(experiment.device).eval()
        folder = RunFolder(experiment.workspace.runs / experiment.dataset.name / name / UNTRAINED)
        found.append(Trained(name, model.title, None, folder, model, weights_digest(model)))
    return found


def _store_of(folder: RunFolder) -> str:
    try:
        return str(folder.record()["identity"]["store"])
    except (FashionNTMError, KeyError, OSError):
        return ""
