"""``tune``: search a model's options by cross-validation on the train sessions, and write the best as a spec."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from pydantic import ValidationError

from manifests.commandline import command_line
from manifests.errors import IncompleteError, ManifestError, Problem, nearest
from manifests.folds import pair_clean_folds, train_only
from manifests.identity import digest, session_key
from manifests.schema import Dataset, RunSpec, Session
from manifests.write import spec_toml
from pipeline.analysis.tuning.space import Axis, nested, propose, space_for
from pipeline.analysis.tuning.trials import LOG, MARK, Trial, TrialLog, TuneError, save_tuned
from pipeline.composition.ready import fitting_sessions
from pipeline.composition.request import composer_request
from pipeline.core.device import cpu_threads, training_threads
from pipeline.core.workspace import Workspace
from pipeline.jobs.experiment import Experiment, Log, silent
from pipeline.jobs.identities import Run, make_run
from pipeline.training.backends.choice import choose_backend
from pipeline.training.data import SessionFeatures
from pipeline.training.errors import DivergenceError
from pipeline.training.fit import fit
from pipeline.training.models import build_model
from pipeline.training.validate import recalls

Fold: TypeAlias = tuple[SessionFeatures, SessionFeatures]  # to fit on, held out


@dataclass(frozen=True)
class SearchResult:
    """The best configuration and its path."""

    best: Trial
    trials: tuple[Trial, ...]
    spec: Path
    log: Path
    folds: tuple[int, ...]
    command: str

    def as_dict(self) -> dict[str, Any]:
        files = {"spec": str(self.spec), "log": str(self.log), "fold_sessions": self.folds, "next": self.command}
        return {"best": vars(self.best), "trials": [vars(t) for t in self.trials], **files}

    def text(self) -> str:
        ranked = sorted((t for t in self.trials if t.value is not None), key=lambda t: -(t.value or 0))
        sizes = ", ".join(map(str, self.folds))
        lines = [f"{len(self.trials)} trials over {len(self.folds)} folds of {sizes} train sessions"]
        for trial in ranked[:5]:
            shown = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items())
            lines.append(f"  {trial.value:.2f}  ({', '.join(f'{f:.1f}' for f in trial.folds)})  {shown}")
        failed = sum(t.value is None for t in self.trials)
        lines += [f"  {failed} trials failed; the log says why"] if failed else []
        return "\n".join([*lines, f"log    {self.log}", f"spec   {self.spec}", f"next: {self.command}"])


def tune(
    spec: RunSpec,
    dataset: Dataset,
    workspace: Workspace,
    model: str,
    search: Sequence[str] = (),
    sampler: str = "random",
    folds: int = 3,
    trials: int = 20,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "auto",
    log: Log = silent,
    options: Sequence[str] = (),
) -> SearchResult:
    """Search the options of ``model``. Test sessions are removed from the dataset first.

    ``folds`` 1: use the spec's validation split instead of cross-validation. ``trials``: at most, in total; no new one
    ``minutes`` after the call. ``options``: words repeated in the printed command. Raises ManifestError for an invalid
    space, FoldError, TuneError, and IncompleteError if stage 1 has not run.
    """
    dataset = train_only(dataset)
    if spec.models and model not in spec.models:
        what = f"the spec has no model {model!r}"
        raise ManifestError([Problem(spec.name, "--model", what, nearest(model, spec.models))])
    axes = space_for(model, search)
    experiment = Experiment(spec, dataset, workspace, device, log)
    experiment.require_train("and a search fits and validates on them")
    sessions = dataset.split("train")
    cuts = _cuts(spec, dataset, sessions, folds)
    for note in _notes(spec, dataset, sessions, cuts):
        log(note)
    catalogue = experiment.store.catalogue()
    keys, run = [session_key(session, catalogue).hex() for session in sessions], make_run(spec, model, seed)
    about: dict[str, Any] = {"model": model, "store": experiment.store.fingerprint, "space": [a.text for a in axes]}
    about |= {"sampler": sampler, "folds": folds, "seed": seed}
    about["base"] = vars(run) | {"training": run.training.model_dump()}
    about["sessions"] = digest([keys, [list(map(int, held)) for held in cuts]])
    folder = workspace.out / "tune" / f"{spec.name}-{model}-{digest(about)[:12]}"
    done = TrialLog(folder / LOG, about)
    if done.trials:
        log(f"{len(done.trials)} trials are in {done.path}")
    experiment.need({axis.key: axis.high or any(axis.choices) for axis in axes})  # options that any trial may use
    parts = _parts(experiment, sessions, cuts)
    began = time.monotonic()
    while len(done.trials) < trials:
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            log(f"{minutes:g} minutes are over: {len(done.trials)} of {trials} trials done")
            break
        params = propose(sampler, axes, done.trials, seed)
        trial = _trial(experiment, model, params, parts, len(done.trials), seed)
        done.add(trial)
        score = f"failed: {trial.failed}" if trial.value is None else f"{trial.value:.2f}"
        log(f"trial {trial.number}: {score} in {trial.seconds:.0f} s  {trial.params}")
    if done.best is None:
        why = done.trials[-1].failed if done.trials else "the budget allowed none"
        raise TuneError(f"no trial succeeded ({why}): narrow the space with --search, or raise the budget")
    return _write(experiment, model, done, axes, [len(c) for c in cuts], options)


def _cuts(spec: RunSpec, dataset: Dataset, sessions: Sequence[Session], folds: int) -> list[list[int]]:
    if folds > 1:
        return pair_clean_folds(sessions, folds, spec.validation.seed)
    _, validation = fitting_sessions(spec, dataset)
    if not validation:
        raise TuneError("--folds 1 uses the validation part of the spec, which has none: set validation.fraction")
    held = {s.id for s in validation}
    return [[i for i, s in enumerate(sessions) if s.id in held]]


def _notes(spec: RunSpec, dataset: Dataset, sessions: Sequence[Session], cuts: Sequence[Sequence[int]]) -> list[str]:
    """Return notes on a trainable composer's bias: features of seen train pairs are better than those of new ones."""
    request = composer_request(spec)
    if not request.kind.trainable or request.weights is not None:
        return []
    seen = {s.id for s in fitting_sessions(spec, dataset)[0]}
    held = [sessions[i].id for cut in cuts for i in cut]
    share = sum(name in seen for name in held)
    if not share:
        return []
    return [
        f"note: the composer was fitted on {share:,} of the {len(held):,} held-out sessions, whose features are "
        "therefore better than those of new ones; --folds 1 holds out only sessions that it has not seen"
    ]


def _parts(experiment: Experiment, sessions: Sequence[Session], cuts: Sequence[Sequence[int]]) -> list[Fold]:
    """Return (features to fit on, held-out features) of each fold."""
    features = experiment.features(sessions)
    place = {session.id: n for n, session in enumerate(features.sessions)}
    parts = []
    for cut in cuts:
        held = {sessions[i].id for i in cut}
        inside = [n for name, n in place.items() if name in held]
        outside = [n for name, n in place.items() if name not in held]
        if not inside or not outside:
            raise IncompleteError("a fold has no session with features: run `extract` on this spec to fill the store")
        parts.append((features.subset(outside), features.subset(inside)))
    return parts


def _trial(
    experiment: Experiment, model: str, params: dict[str, Any], parts: Sequence[Fold], number: int, seed: int
) -> Trial:
    began, scores, reason = time.perf_counter(), tuple[float, ...](), ""
    try:
        run = make_run(experiment.spec, model, seed, *nested(params))
        scores = tuple(_score(experiment, run, fit, held) for fit, held in parts)
    except (DivergenceError, ManifestError, ValidationError) as error:
        reason = " ".join(str(error).split())[:300]
    return Trial(number, params, scores, fmean(scores) if scores else None, time.perf_counter() - began, reason)


def _score(experiment: Experiment, run: Run, fit_features: SessionFeatures, held: SessionFeatures) -> float:
    """Return the mean of R@5 and R@8 of held-out sessions among their own targets, at the epoch that training keeps."""
    model = build_model(run.model, run.options, fit_features.dim, run.seed).to(experiment.device)
    validation = held if run.training.early_stopping else None
    with cpu_threads(training_threads()):
        backend = choose_backend("auto", [model], fit_features, [run.training]).backend
        for _ in fit(model, fit_features, run.training, run.seed, validation, backend):
            pass
    return recalls(model, held)["mean"]


def _write(
    experiment: Experiment,
    model: str,
    trials: TrialLog,
    axes: Sequence[Axis],
    folds: Sequence[int],
    words: Sequence[str],
) -> SearchResult:
    """Write the best trial as a run spec next to the log. Stage 1 results of the old spec are valid for the new one."""
    spec, workspace = experiment.spec, experiment.workspace
    best = trials.best
    assert best is not None and best.value is not None
    own, training = nested(best.params)
    listed = spec.models.get(model, {})
    training = {**listed.get("training", {}), **training}
    chosen = {**listed, **own, **({"training": training} if training else {})}
    name, title = f"{spec.name}{MARK}{model}", f"{spec.title or spec.name}, {model} tuned"
    tuned = spec.model_copy(update={"name": name, "title": title, "models": {**spec.models, model: chosen}})
    path = trials.path.with_name(f"{name}.toml")
    comments = (
        f"Written by tune: {model}, trial {best.number} of {len(trials.trials)}, {best.value:.2f} on "
        f"{len(folds)} pair-clean parts of the train sessions; no test session was used.",
        *(f"searched {axis.text}" for axis in axes),
    )
    save_tuned(path, spec_toml(tuned, comments))
    if (note := workspace.note(spec)) is not None:
        workspace.write_note(tuned, replace(note, spec=name))
    command = command_line("run", str(path), "--model", model, *words)
    return SearchResult(best, tuple(trials.trials), path, trials.path, tuple(folds), command)
