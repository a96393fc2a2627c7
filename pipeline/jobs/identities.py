"""Runs requested by a spec, their identities, and whether they and their evaluations match the present data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from cache import Store
from manifests.errors import ManifestError, Problem, most_frequent, nearest
from manifests.identity import changed_fields, digest, session_key, stack_keys
from manifests.leaks import SUBSETS, subset_ids
from manifests.presets import Preset, presets
from manifests.schema import Dataset, RunSpec, Session, Training
from manifests.views import WHOLE, View
from pipeline.composition.ready import fitting_sessions
from pipeline.core.image_files import is_transient
from pipeline.core.workspace import Workspace
from pipeline.evaluation.evaluate import PROTOCOL
from pipeline.evaluation.files import ResultFiles, ResultsError
from pipeline.training.data import FoundRows, find_rows
from pipeline.training.models import model_class
from pipeline.training.models import models as registry
from pipeline.training.runs import Run, RunFolder, RunIdentity, list_runs, run_identity
from pipeline.training.views import captions_key, chat_key


def asked_runs(spec: RunSpec, models: Sequence[str] = (), seeds: Sequence[int] | None = None) -> list[Run]:
    """Return the runs of ``spec``: every model (or those named) times every seed; an untrained model runs once.

    Raises ManifestError for a model that the spec does not list and that is no preset.
    """
    known = (*spec.models, *presets())
    for name in models:
        if name not in known:
            problem = Problem(spec.name, "--model", f"the spec has no model {name!r}", nearest(name, known))
            raise ManifestError([problem])
    runs = []
    for name in models or spec.models:
        wanted = tuple(seeds if seeds is not None else spec.seeds)
        for seed in wanted if model_class(name).trainable else wanted[:1]:
            runs.append(make_run(spec, name, seed))
    return runs


def make_run(
    spec: RunSpec,
    model: str,
    seed: int,
    options: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Run:
    """Return a run of a model or preset: the preset's settings, those of its name in ``spec``, then the given changes."""
    preset, listed = presets().get(model), spec.models.get(model, {})
    base = preset or Preset(model=model, title="")
    own = base.options | {key: value for key, value in listed.items() if key != "training"}
    merged = spec.training.model_dump() | base.training | listed.get("training", {}) | dict(training or {})
    made = Training.model_validate(merged)
    return Run(base.model, own | dict(options or {}), made, seed, model if preset else "")


def what_helps(backbone: Store, spec: RunSpec) -> str:
    """Return the next step that gets missing features, by the failures on record in the store of the extractor."""
    failures = backbone.failures()
    if not failures:
        return f"run `{spec.command('extract')}`"
    if unread := sum(is_transient(f.stage, f.reason) for f in failures):
        return f"run `{spec.command('extract')}`, which reads {unread:,} unreadable files again"
    why = most_frequent(f"{f.stage}: {f.reason}" for f in failures)
    return f"fix what failed ({why}), then run `{spec.command('extract', '--retry-failed')}`"


@dataclass(frozen=True)
class RunState:
    """State of a run on the present data: "evaluated", "finished" (trained), or the state of its folder.

    ``changed``: lines ``field: old -> new`` where the last evaluation, or the closest run, used other data.
    """

    name: str
    changed: tuple[str, ...]
    command: str

    def __str__(self) -> str:
        if not self.changed:
            return self.name
        what = "its evaluation" if self.name == "finished" else "a run of this configuration"
        return f"{self.name}; {what} is not current ({'; '.join(self.changed)}): run `{self.command}`"


class RunIdentities:
    """Runs and evaluations of a spec on its present data, by content keys and row numbers; reads no features."""

    def __init__(self, spec: RunSpec, dataset: Dataset, workspace: Workspace):
        """Raise IncompleteError if the features do not exist yet, StaleError if they were made from other data."""
        self.spec, self.dataset, self.workspace = spec, dataset, workspace
        self.store = workspace.store(spec, dataset)
        self._of_turns: dict[int | None, dict[str, Any]] = {}  # see ``_test_identity``

    @cached_property
    def found(self) -> tuple[FoundRows, FoundRows | None]:
        """Return the row numbers of the sessions to fit on and of the spec's validation split (None without one).

        No features are read, so a run's identity costs only key look-ups.
        """
        fit, validation = fitting_sessions(self.spec, self.dataset)
        return find_rows(self.store, fit), find_rows(self.store, validation) if validation else None

    @cached_property
    def found_test(self) -> FoundRows:
        return find_rows(self.store, self.dataset.split("test"))

    @property
    def what_helps(self) -> str:
        """Return the next step that gets missing features."""
        return what_helps(self.workspace.backbone(self.spec, self.dataset), self.spec)

    def identity(self, run: Run) -> RunIdentity:
        """Return all fields that can change the results of ``run``, computed from content keys alone."""
        fit, validation = self.found
        held = validation.content if validation else None
        return run_identity(run, self.store.fingerprint, fit.content, self.spec.validation, held)

    def folder(self, run: Run) -> RunFolder:
        """Return the folder of a run, which may not exist yet."""
        return RunFolder.of(self.workspace.runs, self.dataset.name, run.model, self.identity(run).id)

    @cached_property
    def _finished(self) -> dict[str, list[tuple[RunFolder, dict[str, Any]]]]:
        """Return finished runs on datasets of this name with their identity fields, by model."""
        found: dict[str, list[tuple[RunFolder, dict[str, Any]]]] = {}
        for folder in list_runs(self.workspace.runs):
            if folder.dataset == self.dataset.name and folder.state == "finished":
                fields = folder.record().get("identity", {})
                found.setdefault(folder.model, []).append((folder, fields))
        return found

    def other_seeds(self, run: Run) -> list[int]:
        """Return the seeds of finished runs that differ from ``run`` in the seed alone."""
        own, known = self.identity(run).fields, (fields for _, fields in self._finished.get(run.model, []))
        alike = [fields["seed"] for fields in known if own | {"seed": fields.get("seed")} == fields]
        return sorted(seed for seed in alike if isinstance(seed, int) and seed != run.seed)

    def current_runs(self, models: Sequence[str] = (), seeds: Sequence[int] | None = None) -> list[Run]:
        """Return the requested runs; without ``seeds``, also every other seed trained on the same data."""
        runs = asked_runs(self.spec, models, seeds)
        if seeds is not None:
            return runs
        found: list[Run] = []
        for _, same in groupby(runs, key=lambda run: run.asked):
            own = list(same)
            asked = {run.seed for run in own}
            found += [*own, *(replace(own[0], seed=s) for s in self.other_seeds(own[0]) if s not in asked)]
        return found

    def run_of(self, fields: Mapping[str, Any]) -> Run | None:
        """Return the run described by a record's identity fields if it was trained on the present data, else None."""
        try:
            model = fields["model"]
            training = Training.model_validate(fields["training"] or {})
            run = Run(model["name"], model["options"], training, fields["seed"] or 0)
            return run if self.identity(run).fields == fields else None
        except (KeyError, TypeError, ValueError):
            return None

    def earlier(self, run: Run) -> list[str]:
        """Return one line ``field: old -> new`` per differing field of the closest finished run on other data."""
        now, same = self.identity(run).fields, ("model", "training", "seed")
        alike = [f for _, f in self._finished.get(run.model, []) if all(f.get(k) == now[k] for k in same)]
        return min(filter(None, (changed_fields({"version": 1} | f, now) for f in alike)), key=len, default=[])

    @cached_property
    def subsets(self) -> dict[str, set[str]]:
        return subset_ids(self.dataset)

    def result_files(self, run: Run, view: View = WHOLE) -> ResultFiles:
        """Return the files of the evaluation of ``run`` under ``view``, which may not exist yet."""
        other = "no-references" if self.spec.references == "removed" else ""
        return ResultFiles.of(self.folder(run).path, view, "-".join(filter(None, (self.dataset.protocol, other))))

    def evaluation(self, run: Run, view: View = WHOLE) -> dict[str, Any] | None:
        """Return the evaluation summary of ``run`` if one exists for exactly these sessions, galleries and protocol."""
        try:
            return self.result_files(run, view).load(self.evaluation_identity(run, view))
        except ResultsError:
            return None

    def state(self, run: Run, view: View = WHOLE) -> RunState:
        """Return whether ``run`` is trained and evaluated on the present data, and otherwise which fields differ."""
        folder = self.folder(run)
        if folder.state != "finished":
            changed = self.earlier(run) if folder.state == "absent" else []
            return RunState(folder.state, tuple(changed), self.train_command(run))
        files, identity = self.result_files(run, view), self.evaluation_identity(run, view)
        evaluate = self.spec.command("evaluate", "--model", run.asked, "--seeds", str(run.seed))
        try:
            changed = files.stale(identity)
        except ResultsError as error:
            return RunState("finished", (f"damaged: {error}",), evaluate)
        if changed:
            return RunState("finished", tuple(changed), evaluate)
        return RunState("evaluated" if files.load(identity) else "finished", (), evaluate)

    def evaluation_identity(self, run: Run, view: View = WHOLE) -> dict[str, Any]:
        """Return all fields besides the run that determine an evaluation's results, by content; reads no features."""
        catalogue, sessions = self.store.catalogue(), self._test_sessions(view.turns)
        about = {"references": self.spec.references, "averaging": self.dataset.averaging, "view": view.model_dump()}
        identity = {"protocol": PROTOCOL | about, **self._test_identity(view.turns)}
        family = registry.get(run.model)
        if not family.dialogs and (view.last is None or family.reads != "concatenated"):
            return identity
        key = chat_key if family.dialogs else captions_key
        rows = stack_keys(key(s.last(view.last or len(s.turns)), catalogue) for s in sessions)
        there = digest((self.store.find("query", rows) >= 0).tolist())
        return identity | {"dialogs" if family.dialogs else "windows": there}

    def _test_sessions(self, turns: int | None) -> list[Session]:
        """Return the test sessions that have their features, of ``turns`` turns unless it is None."""
        return [s for s in self.found_test.sessions if turns in (None, len(s.turns))]

    def _test_identity(self, turns: int | None) -> dict[str, Any]:
        """Return the fields of ``evaluation_identity`` that do not depend on the run, computed once."""
        if turns not in self._of_turns:
            catalogue, sessions = self.store.catalogue(), self._test_sessions(turns)
            every = sum(turns in (None, len(s.turns)) for s in self.dataset.split("test"))
            self._of_turns[turns] = identity = {
                "sessions": digest([session_key(session, catalogue).hex() for session in sessions]),
                "left_out": every - len(sessions),
                "subsets": digest([[name for name in SUBSETS if s.id in self.subsets[name]] for s in sessions]),
                "galleries": self._gallery_digests,
            }
            if any(session.also for session in sessions):
                keys = [[catalogue[i].hex() for i in s.also if i in catalogue] for s in sessions]
                identity["correct"] = digest(keys)
        return self._of_turns[turns]

    @cached_property
    def _gallery_digests(self) -> dict[str, list[Any]]:
        """Return category -> [order-independent digest of content keys, candidates, images without a feature]."""
        catalogue, found = self.store.catalogue(), {}
        for gallery in self.dataset.galleries:
            if gallery.split == "test":
                keys = sorted(catalogue[image] for image in gallery.images if image in catalogue)
                there = self.store.find("target", stack_keys(keys)) >= 0
                held = [key.hex() for key, present in zip(keys, there, strict=True) if present]
                found[gallery.category] = [digest(held), len(held), len(gallery.images) - len(held)]
        return dict(sorted(found.items()))

    def train_command(self, run: Run) -> str:
        return self.spec.command("train", "--model", run.asked, "--seeds", str(run.seed))
