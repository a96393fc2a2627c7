"""The cached features of a spec and its runs: what every stage-2 job works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from manifests.errors import IncompleteError
from manifests.schema import Dataset, RunSpec, Session
from manifests.views import WHOLE, View
from pipeline.core.device import resolve_device
from pipeline.core.workspace import Workspace
from pipeline.evaluation.evaluate import Candidates, load_candidates
from pipeline.jobs.identities import Run, RunIdentities
from pipeline.training.checkpoint import load_model
from pipeline.training.data import FoundRows, SessionFeatures, add_texts, find_rows, session_features
from pipeline.training.errors import MissingFeaturesError
from pipeline.training.job import TrainRequest
from pipeline.training.models import MemoryModel, is_fitted
from pipeline.training.views import view_features

Log = Callable[[str], None]


def silent(_: str) -> None:
    """Discard a log message."""


class Experiment(RunIdentities):
    """Cached features of a spec on one device, loaded once for all runs. Uses no images and no extractor."""

    def __init__(self, spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str = "auto", log: Log = silent):
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
    def parts(self) -> tuple[SessionFeatures, SessionFeatures | None]:
        """Features to fit on, and validation features or None: the spec's pair-disjoint split.

        Without train features, no sessions of the test features' width: enough for models that are not fitted.
        """
        fit, validation = self.found
        if not fit.sessions:
            return replace(self.test.subset(()), content=fit.content), None
        return self.features(fit), self.features(validation) if validation else None

    @cached_property
    def test(self) -> SessionFeatures:
        if not self.dataset.split("test"):
            raise IncompleteError(f"dataset '{self.dataset.name}' has no test sessions: there is nothing to evaluate")
        return self.features(self.found_test)

    def features(self, sessions: Sequence[Session] | FoundRows) -> SessionFeatures:
        """Load the features of ``sessions``, with text rows if a model needs them; log the sessions left out."""
        found = sessions if isinstance(sessions, FoundRows) else find_rows(self.store, sessions)
        if found.reasons and not found.sessions:
            raise self._without(f"none of {len(found.reasons):,} sessions has all of its features", found)
        features = session_features(self.store, found)
        if self.texts:
            features = add_texts(features, self.workspace.backbone(self.spec, self.dataset))
        for reason in features.reasons[:3]:
            self.log(f"left out: {reason}")
        if len(features.skipped) > 3:
            every = len(found.sessions) + len(found.reasons)
            self.log(f"left out: {len(features.skipped)} of {every} sessions in all")
        return features.to(self.device)

    def _without(self, what: str, found: FoundRows) -> MissingFeaturesError:
        """Return the error for sessions without features: the first reason, and the next step."""
        first = next(iter(found.reasons.values()))
        return MissingFeaturesError(f"dataset '{self.dataset.name}': {what} (first: {first}): {self.what_helps}")

    def require_train(self, purpose: str) -> None:
        """Raise IncompleteError if no train session has features."""
        fit, _ = self.found
        if fit.reasons and not fit.sessions:
            raise self._without(f"none of {len(fit.reasons):,} train sessions has all of its features, {purpose}", fit)
        if not fit.sessions:
            raise IncompleteError(f"dataset '{self.dataset.name}' has no train sessions, {purpose}")

    @cached_property
    def candidates(self) -> dict[str, Candidates]:
        """Gallery features of the test sessions, by category."""
        return load_candidates(self.store, [g for g in self.dataset.galleries if g.split == "test"])

    def viewed(self, model: MemoryModel, view: View = WHOLE) -> SessionFeatures:
        """Return the features of the test sessions in ``view``, as the model reads them."""
        return view_features(self.test, self.store, view, model.reads == "concatenated", model.dialogs)

    def request(self, run: Run) -> TrainRequest:
        self.need(run.options)
        if is_fitted(run.model, run.options):
            self.require_train(f"and model {run.model} is fitted on them")
        fit, validation = self.parts
        place = (self.workspace.runs, self.dataset.name, self.store.fingerprint)
        return TrainRequest(*place, run, fit, self.spec.validation, validation)

    def model(self, run: Run) -> MemoryModel:
        """Return the trained model of a run, on the experiment's device. Raises IncompleteError if it is not trained."""
        folder = self.folder(run)
        if folder.state != "finished":
            raise IncompleteError(f"run {folder.id} is {folder.state}: run `{self.train_command(run)}`")
        return load_model(folder.path, self.device)

    def finished(self, runs: Sequence[Run]) -> list[Run]:
        """Return the trained ones of ``runs`` and log the others. Raises IncompleteError if none is trained."""
        found = []
        for run in runs:
            if self.folder(run).state == "finished":
                found.append(run)
            else:
                changed = self.earlier(run)
                other = f" on this data ({'; '.join(changed)})" if changed else ""
                self.log(f"{run.asked} seed {run.seed} is not trained{other}: run `{self.train_command(run)}`")
        if not found:
            raise IncompleteError(f"no run of spec '{self.spec.name}' is trained: run `{self.spec.command('train')}`")
        return found
