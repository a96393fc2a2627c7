"""Stage 2 jobs: train a spec's memory models on cached features and evaluate them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from manifests.errors import IncompleteError
from manifests.leaks import SUBSETS
from manifests.schema import Dataset, RunSpec
from manifests.views import WHOLE, View
from pipeline.core.workspace import Workspace
from pipeline.jobs.identities import Run, RunIdentities, asked_runs
from pipeline.training.lookup import FoundRows, find_rows

Log = Callable[[str], None]


def silent(_: str) -> None:
    """Discard a log message."""


@dataclass(frozen=True)
class TrainOptions:
    """Training options outside a run's identity. side_by_side: train runs of one shape together; None: only on CUDA.

    threads: number of CPU threads; None: OMP_NUM_THREADS, or one.
    """

    backend: str = "auto"
    threads: int | None = None
    side_by_side: bool | None = None
    diagnostics: bool = False


class Experiment(RunIdentities):
    """Cached features of a spec on one device, loaded once for all runs. Uses no images and no extractor."""

    def __init__(self, spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str = "auto", log: Log = silent):
        from pipeline.core.device import resolve_device

        super().__init__(spec, dataset, workspace)
        self.log = log
        self.device = resolve_device(device)
        self.texts = False
        for options in spec.models.values():
            self.need(options)

    def need(self, options: Mapping[str, Any]) -> None:
        """Reload the features with text rows if a model with ``options`` reads them and they are not loaded yet.

        A run of an ablation or a search may need text rows even if no model of the spec does.
        """
        if options.get("texts") and not self.texts:
            self.texts = True
            for name in ("parts", "test"):
                self.__dict__.pop(name, None)

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """Return (features to fit on, validation features or None): the spec's pair-disjoint split."""
        fit, validation = self.found
        return self._features(fit), self._features(validation) if validation else None

    @cached_property
    def test(self) -> Any:
        if not self.dataset.split("test"):
            raise IncompleteError(f"dataset '{self.dataset.name}' has no test sessions: there is nothing to evaluate")
        return self._features(self.found_test)

    def _features(self, sessions: Sequence[Any] | FoundRows) -> Any:
        from pipeline.training.data import session_features
        from pipeline.training.texts import add_texts

        found = sessions if isinstance(sessions, FoundRows) else find_rows(self.store, sessions)
        sessions = (*found.sessions, *found.reasons)
        features = session_features(self.store, found)
        if self.texts:
            features = add_texts(features, self.workspace.backbone(self.spec, self.dataset))
        for reason in features.reasons[:3]:
            self.log(f"left out: {reason}")
        if len(features.skipped) > 3:
            self.log(f"left out: {len(features.skipped)} of {len(sessions)} sessions in all")
        return features.to(self.device)

    def request(self, run: Run) -> Any:
        """Return the training request of a run, including its features."""
        from pipeline.training.job import TrainRequest

        self.need(run.options)
        fit, validation = self.parts
        return TrainRequest(
            self.workspace.runs,
            self.dataset.name,
            self.store.fingerprint,
            run.model,
            run.options,
            fit,
            run.training,
            run.seed,
            self.spec.validation,
            validation,
        )

    def train(self, run: Run, force: bool = False, how: TrainOptions = TrainOptions()) -> Any:
        """Train one run (see ``train_group``). Raises DivergenceError if it diverges."""
        (done,) = self.train_group([run], force, how)
        if isinstance(done, Exception):
            raise done
        return done

    def train_group(self, runs: Sequence[Run], force: bool = False, how: TrainOptions = TrainOptions()) -> list[Any]:
        """Train runs of one shape side by side unless they have finished; log their epochs.

        Returns one ``Trained`` per run, or the error of a run that diverged.
        """
        from pipeline.training.job import train_runs

        def epoch(request: Any, metrics: dict[str, Any]) -> None:
            if "loss" in metrics:
                found = metrics.get("validation", {}).get("mean")
                shown = "" if found is None else f", validation mean of R@5 and R@8 {found:.1f}"
                line = f"{request.name} seed {request.seed} epoch {metrics['epoch']}: loss {metrics['loss']:.4f}{shown}"
                self.log(line)

        requests = [self.request(run) for run in runs]

        def chosen(choice: Any) -> None:
            if choice.fallback:
                self.log(f"{runs[0].model}: {choice.fallback}")

        def resumed(request: Any, after: int) -> None:
            self.log(f"{request.name} seed {request.seed}: goes on after epoch {after} of {request.training.epochs}")

        return train_runs(
            requests,
            spec=self.spec.model_dump(mode="json"),
            backend=how.backend,
            threads=how.threads,
            again=force,
            diagnostics=how.diagnostics,
            progress=epoch,
            chosen=chosen,
            resumed=resumed,
        )

    def together(self, runs: Sequence[Run], how: TrainOptions = TrainOptions()) -> list[list[Run]]:
        """Return the runs in groups to train side by side: those that differ only in the seed, where it is faster."""
        side_by_side = self.device.type == "cuda" if how.side_by_side is None else how.side_by_side
        groups: list[list[Run]] = []
        for run in runs:
            last = groups[-1][-1] if groups and side_by_side else None
            same = last is not None and (last.model, last.options, last.training) == (
                run.model,
                run.options,
                run.training,
            )
            if same:
                groups[-1].append(run)
            else:
                groups.append([run])
        return groups

    @cached_property
    def candidates(self) -> Any:
        from pipeline.evaluation.evaluate import load_candidates

        return load_candidates(self.store, [g for g in self.dataset.galleries if g.split == "test"])

    def evaluate(self, run: Run, view: View = WHOLE) -> dict[str, Any]:
        """Rank the test sessions with a finished run, write results.h5 and summary.json, and return the summary."""
        from pipeline.evaluation.evaluate import evaluate
        from pipeline.training.checkpoint import load_model
        from pipeline.training.validate import embed, scorer
        from pipeline.training.views import view_features

        folder = self.folder(run)
        if folder.state != "finished":
            raise IncompleteError(f"run {folder.id} is {folder.state}: run `{self.train_command(run)}`")
        model, files = load_model(folder.path, self.device), self.result_files(run, view)
        shown = view_features(self.test, self.store, view, model.reads == "concatenated")
        queries = embed(model, shown).cpu().numpy()
        in_view = {s.id for s in self.dataset.split("test") if view.turns in (None, len(s.turns))}
        reasons = {i: why for i, why in zip(shown.skipped, shown.reasons, strict=True) if i in in_view}
        result = evaluate(
            queries,
            shown.sessions,
            self.candidates,
            self.subsets,
            self.dataset.averaging,
            reasons,
            score=scorer(model, shown) if model.scores else None,
        )
        note = self.workspace.extracted(self.spec)
        summary = result.summary(
            run=folder.id,
            model=run.model,
            seed=run.seed,
            store=self.store.fingerprint,
            dataset=self.dataset.name,
            extractor=self.store.extractor,
            gallery=note.gallery or self._gallery(),
            contaminated_on=list(note.contaminated_on),
            spec=self.spec.name,
            view=view.model_dump(),
            weights=files.weights(),
            identity=self.evaluation_identity(run, view),
        )
        files.save(result, summary)
        return summary

    def _gallery(self) -> str:
        """Return the kind of the candidates by the dataset, for records of earlier versions that lack it."""
        return "caption" if all(image.file is None for image in self.dataset.images.values()) else "image"

    def finished(self, runs: Sequence[Run]) -> list[Run]:
        """Return the trained ones of ``runs`` and log the others. Raises IncompleteError if none is trained."""
        found = []
        for run in runs:
            if self.folder(run).state == "finished":
                found.append(run)
            else:
                changed = self.earlier(run)
                other = f" on this data ({'; '.join(changed)})" if changed else ""
                self.log(f"{run.model} seed {run.seed} is not trained{other}: run `{self.train_command(run)}`")
        if not found:
            raise IncompleteError(f"no run of spec '{self.spec.name}' is trained: run `{self.spec.command('train')}`")
        return found


def train_spec(
    spec: RunSpec,
    dataset: Dataset,
    workspace: Workspace,
    models: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    device: str = "auto",
    force: bool = False,
    log: Log = silent,
    how: TrainOptions = TrainOptions(),
) -> Iterator[str]:
    """Train the requested runs in order; yield one line per finished or reused run.

    Raises the first DivergenceError after the other runs have been trained.
    """
    runs, failed = asked_runs(spec, models, seeds), []
    stage = Experiment(spec, dataset, workspace, device, log)
    for group in stage.together(runs, how):
        for run, done in zip(group, stage.train_group(group, force, how), strict=True):
            if isinstance(done, Exception):
                failed.append(done)
                yield f"{run.model} seed {run.seed}: failed ({done})"
                continue
            what = "finished before, kept" if done.reused else f"trained in {done.summary['seconds']:.1f} s"
            chosen = done.summary.get("chosen") or {}
            detail = f", alpha {chosen['alpha']}" if "alpha" in chosen else ""
            if how.diagnostics and done.reused and _has_memory(run.model) and not done.folder.diagnoses():
                detail += ", without diagnostics: --force trains it again with them"
            yield f"{run.model} seed {run.seed}: {what}{detail}; run {done.folder.id}"
    if failed:
        raise failed[0]


def _has_memory(model: str) -> bool:
    from pipeline.training.models import models as registry
    from pipeline.training.models.cm_ntm import CMNTM

    return issubclass(registry.get(model), CMNTM)


def evaluate_spec(
    spec: RunSpec,
    dataset: Dataset,
    workspace: Workspace,
    models: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    device: str = "auto",
    log: Log = silent,
) -> list[dict[str, Any]]:
    """Evaluate the finished ones of the requested runs; log those not trained yet.

    Raises IncompleteError if none of them is trained.
    """
    stage = Experiment(spec, dataset, workspace, device, log)
    return [stage.evaluate(run) for run in stage.finished(stage.current_runs(models, seeds))]


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
