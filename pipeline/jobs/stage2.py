"""Stage 2 jobs: train the memory models of a spec on its cached features, and evaluate them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from manifests.leaks import SUBSETS
from manifests.load import portable
from manifests.views import WHOLE, View
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.evaluate import evaluate as rank_sessions
from pipeline.jobs.cards import CARD, write_card
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import Run, asked_runs
from pipeline.jobs.trackers import Followed, Trackers
from pipeline.training.backends.choice import BackendChoice
from pipeline.training.errors import DivergenceError
from pipeline.training.job import Execution, Trained, TrainRequest, train_runs
from pipeline.training.models import MemoryModel
from pipeline.training.models import models as registry
from pipeline.training.models.cm_ntm import CMNTM
from pipeline.training.runs import RunFolder
from pipeline.training.validate import chance_recall, embed, scorer


@dataclass(frozen=True)
class TrainOptions(Execution):
    """Training options outside a run's identity. side_by_side: train runs of one shape together; None: only on CUDA.

    log: names of trackers that receive the metrics.
    """

    side_by_side: bool | None = None
    log: tuple[str, ...] = ()


PLAIN = TrainOptions()


def train(
    experiment: Experiment, runs: Sequence[Run] | None = None, options: TrainOptions = PLAIN
) -> Iterator[tuple[Run, Trained | DivergenceError]]:
    """Train ``runs`` (default: those of the spec) and yield each with its outcome; finished runs are kept.

    Runs are trained side by side where it is faster. Raises the first DivergenceError after the other runs.
    """
    failed = []
    for group in groups_of(asked_runs(experiment.spec) if runs is None else runs, experiment, options):
        for run, outcome in zip(group, train_group(experiment, group, options), strict=True):
            if isinstance(outcome, DivergenceError):
                failed.append(outcome)
            yield run, outcome
    if failed:
        raise failed[0]


def groups_of(runs: Sequence[Run], experiment: Experiment, options: TrainOptions = PLAIN) -> list[list[Run]]:
    """Return the runs in groups to train side by side: those that differ only in the seed, where it is faster."""
    together = experiment.device.type == "cuda" if options.side_by_side is None else options.side_by_side
    groups: list[list[Run]] = []
    for run in runs:
        if together and groups and replace(groups[-1][0], seed=run.seed) == run:
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def train_group(
    experiment: Experiment, runs: Sequence[Run], options: TrainOptions = PLAIN
) -> list[Trained | DivergenceError]:
    """Train runs of one shape side by side unless they have finished; log their epochs.

    Returns one ``Trained`` per run, or the error of a run that diverged.
    """
    messages, finished = _Messages(experiment, runs[0].asked, options), False
    try:
        spec = portable(experiment.spec.model_dump(mode="json"))
        heard = replace(options, progress=messages.epoch, chosen=messages.chosen, resumed=messages.resumed)
        done = train_runs([experiment.request(run) for run in runs], replace(heard, spec=spec))
        finished = True
    finally:
        messages.trackers.close(finished)
    for outcome in done:
        if isinstance(outcome, Trained) and not (outcome.reused and (outcome.folder.path / CARD).is_file()):
            card(experiment, outcome.folder)
    return done


class _Messages:
    """Log lines of runs in training, and their metrics for the trackers of ``options.log``."""

    def __init__(self, experiment: Experiment, model: str, options: TrainOptions):
        self.experiment, self.model = experiment, model
        self.trackers, self.tracked = Trackers(options.log, experiment.workspace.out, experiment.log), bool(options.log)

    @cached_property
    def chance(self) -> str:
        held = self.experiment.parts[1]
        return "" if held is None else f" (chance {chance_recall(held):.1f})"

    def epoch(self, request: TrainRequest, metrics: dict[str, Any]) -> None:
        if "loss" in metrics:
            found = metrics.get("validation", {}).get("mean")
            shown = "" if found is None else f", validation mean of R@5 and R@8 {found:.1f}{self.chance}"
            line = f"{self.model} seed {request.run.seed} epoch {metrics['epoch']}: loss {metrics['loss']:.4f}{shown}"
            self.experiment.log(line)
        if self.tracked:
            identity = request.identity
            name = f"{request.dataset} {request.run.model} seed {request.run.seed} {identity.id}"
            self.trackers.log(Followed(id=identity.id, name=name, config=identity.fields), metrics)

    def chosen(self, choice: BackendChoice) -> None:
        if choice.fallback:
            self.experiment.log(f"{self.model}: {choice.fallback}")

    def resumed(self, request: TrainRequest, after: int) -> None:
        run = request.run
        self.experiment.log(f"{self.model} seed {run.seed}: continues after epoch {after} of {run.training.epochs}")


def card(experiment: Experiment, folder: RunFolder) -> None:
    record = experiment.workspace.note(experiment.spec)
    write_card(folder, registry.get(folder.model).title, record)


def outcome_text(run: Run, done: Trained | DivergenceError, diagnostics: bool = False) -> str:
    """Return one line on a run: how long it was trained, or that it was finished before, or failed; its id.

    diagnostics: whether they were asked for; a kept run without them gets a hint.
    """
    if isinstance(done, DivergenceError):
        return f"{run.asked} seed {run.seed}: failed ({done})"
    what = "finished before, kept" if done.reused else f"trained in {done.summary['seconds']:.1f} s"
    chosen = done.summary.get("chosen") or {}
    detail = f", alpha {chosen['alpha']}" if "alpha" in chosen else ""
    if diagnostics and done.reused and issubclass(registry.get(run.model), CMNTM) and not done.folder.diagnoses():
        detail += ", without diagnostics: --force trains it again with them"
    return f"{run.asked} seed {run.seed}: {what}{detail}; run {done.folder.id}"


def evaluate(experiment: Experiment, runs: Sequence[Run] | None = None) -> list[dict[str, Any]]:
    """Evaluate the finished ones of ``runs`` (default: those of the spec, with every seed trained on its data).

    Return their summaries; "model" is the preset's name for a run of a preset.

    Log those not trained yet. Raises IncompleteError if none of them is trained.
    """
    asked = experiment.current_runs() if runs is None else runs
    return [evaluate_run(experiment, run) | {"model": run.asked} for run in experiment.finished(asked)]


def evaluate_run(experiment: Experiment, run: Run, view: View = WHOLE) -> dict[str, Any]:
    """Rank the test sessions with a finished run, write results.h5 and summary.json, and return the summary."""
    result = ranking_of(experiment, experiment.model(run), view)
    files = experiment.result_files(run, view)
    summary = result.summary(
        **_facts(experiment, run, view), weights=files.weights(), identity=experiment.evaluation_identity(run, view)
    )
    files.save(result, summary)
    if view == WHOLE:
        card(experiment, experiment.folder(run))
    return summary


def ranking_of(experiment: Experiment, model: MemoryModel, view: View = WHOLE) -> Evaluation:
    features, test = experiment.viewed(model, view), experiment.dataset.split("test")
    in_view = {s.id for s in test if view.turns in (None, len(s.turns))}
    return rank_sessions(
        embed(model, features).cpu().numpy(),
        features.sessions,
        experiment.candidates,
        experiment.subsets,
        experiment.dataset.averaging,
        skipped={i: why for i, why in zip(features.skipped, features.reasons, strict=True) if i in in_view},
        score=scorer(model, features) if model.scores else None,
        references=experiment.spec.references,
    )


def _facts(experiment: Experiment, run: Run, view: View) -> dict[str, Any]:
    """Return the facts of a run that its evaluation summary records."""
    dataset, note = experiment.dataset, experiment.workspace.extracted(experiment.spec)
    # Records of earlier versions lack the kind of candidates.
    captions = all(image.file is None for image in dataset.images.values())
    gallery, store = note.gallery or ("caption" if captions else "image"), experiment.store
    facts = {"run": experiment.folder(run).id, "model": run.model, "seed": run.seed, "store": store.fingerprint}
    facts |= {"dataset": dataset.name, "extractor": store.extractor, "gallery": gallery}
    facts |= {"contaminated_on": list(note.contaminated_on), "spec": experiment.spec.name, "view": view.model_dump()}
    return facts


def summary_text(summaries: Sequence[dict[str, Any]]) -> str:
    """Format the overall metrics, one line per run and subset; subsets that contain all sessions are left out."""
    lines = []
    for summary in summaries:
        for subset, categories in summary["metrics"].items():
            overall = categories["overall"]
            if subset != SUBSETS[0] and overall["n"] == summary["metrics"][SUBSETS[0]]["overall"]["n"]:
                continue
            shown = "  ".join(f"{k} {v:5.1f}" for k, v in overall.items() if k != "n")
            lines.append(f"{summary['model']:8} seed {summary['seed']}  {subset:17} {overall['n']:5} sessions  {shown}")
    return "\n".join(lines)
