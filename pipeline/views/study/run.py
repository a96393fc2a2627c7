"""Create or reopen the study of a spec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests.identity import changed_fields
from manifests.schema import RunSpec
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import Trained, data_of, first_seeds, models_of, trained_runs
from pipeline.views.study.store import MOST_MODELS, StudyError, StudyFile, draw_questions

PREFERRED = ("cm_ntm", "lstm", "ewma")  # the paper's three (section 4.6), if they are trained


def default_path(workspace: Workspace, spec: RunSpec) -> Path:
    return workspace.out / "studies" / f"{spec.name}.sqlite"


def open_study(
    path: Path,
    experiment: Experiment,
    models: Sequence[str] = (),
    sessions: int = 45,
    k: int = 1,
    seed: int = 0,
    codes: Sequence[str] = (),
) -> StudyFile:
    """Open the study in ``path``, or create it. Existing questions never change, so that answers stay comparable.

    Raises StudyError when the settings, runs, weights, features, galleries or test sessions of the file differ from the
    current ones, naming them.
    """
    asked: dict[str, Any] = {"spec": experiment.spec.name, "dataset": experiment.dataset.name}
    asked |= {"wanted_models": list(models), "sessions": sessions, "k": k, "seed": seed, "codes": list(codes)}
    if path.is_file():
        study = StudyFile(path)
        old = study.about
        if changed := [f"{k} {old.get(k)!r} -> {v!r}" for k, v in asked.items() if old.get(k) != v]:
            what = f"holds a study of other settings ({'; '.join(changed)})"
            raise StudyError(f"{path}: {what}: name a new file with --file")
        _check_identity(study, experiment)
        experiment.log(f"continuing {path}: {len(study.questions)} questions, {len(study.answers())} answers so far")
        return study
    chosen = _choose(experiment, models)
    bed = TestBed(experiment)
    questions, differ = draw_questions(bed, chosen, sessions, k, seed)
    share = f"{differ:,} of {len(bed.sessions):,} test sessions"
    experiment.log(f"{len(questions)} questions; the models differ on {share}")
    runs = [{**about, "title": m.title} for about, m in zip(models_of(chosen), chosen, strict=True)]
    facts = {"models": runs, "differ": differ, "test_sessions": len(bed.sessions), "made_with": _data_of(experiment)}
    return StudyFile.create(path, {**asked, **facts}, questions)


def _data_of(experiment: Experiment) -> dict[str, Any]:
    return data_of(experiment.store, experiment.candidates, experiment.dataset.split("test"))


def _check_identity(study: StudyFile, experiment: Experiment) -> None:
    """Raise StudyError if the questions were drawn from other models or data than the current ones."""
    known = {m["label"]: {"run": m["run"], "weights": m.get("weights")} for m in study.about["models"]}
    models = models_of(trained_runs(experiment)[0])
    present = {m[name]: {"run": m["run"], "weights": m["weights"]} for name in ("label", "run") for m in models}
    now = {label: present.get(m["run"], present.get(label)) for label, m in known.items()}
    made_with = study.about.get("made_with", {})
    if changed := changed_fields({**made_with, "models": known}, {**_data_of(experiment), "models": now}):
        what = f"its questions were drawn with other models or data ({'; '.join(changed)}): answers to both would be"
        raise StudyError(f"{study.path}: {what} counted as one; name a new file with --file")


def _choose(experiment: Experiment, models: Sequence[str]) -> list[Trained]:
    found, missing = trained_runs(experiment, models)
    first = first_seeds(found)
    if models:
        if absent := [name for name in models if name not in first]:
            commands = "; ".join(f"`{command}`" for command in missing)
            raise StudyError(f"not trained: {', '.join(absent)}; run {commands}")
        return [first[name] for name in models]
    preferred = [first[name] for name in PREFERRED if name in first]
    others = [trained for name, trained in reversed(first.items()) if name not in PREFERRED]
    return preferred if len(preferred) > 1 else (preferred + others)[: min(3, MOST_MODELS)]
