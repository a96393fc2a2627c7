"""Training runs on disk: identity, folder and state.

``<runs>/<dataset>/<model>/<run id>/`` contains run.json (spec, identity, execution; rewritten with the summary when
training has finished), metrics.jsonl and, on request, diagnostics.jsonl (one line per epoch), model.safetensors and
model.json, the seal of these files (seal.json, written last), and the files of the evaluation: results.h5, summary.json
and their own seal. A folder without ``finished`` in its run.json was interrupted: training continues from its saved state
(``pipeline.training.resume``). A folder that does not match its seal is damaged, and is trained again from the start.
Every write needs the folder's lease, so a trainer that has lost it changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cache.errors import StoreBusyError, naming
from cache.files import replace_atomically, write_json
from cache.lease import Lease
from cache.recovery import remove_temporaries
from cache.seal import RESULTS_SEAL, SEAL, SealError, check_seal, write_seal
from manifests.identity import digest
from manifests.schema import Training, Validation
from pipeline.training.checkpoint import RUN, SIDECAR, TRAIN_AGAIN, WEIGHTS, save_model
from pipeline.training.errors import DivergenceError, RunError
from pipeline.training.models import MemoryModel, model_options
from pipeline.training.resume import RunState, load_state, remove_state, save_state

METRICS, DIAGNOSTICS = "metrics.jsonl", "diagnostics.jsonl"
RUN_ID_DIGITS = 12
IDENTITY_VERSION = 2  # version 1, not recorded, used session ids, and missed changed images with unchanged ids
UNSEALED = "not sealed"
State = Literal["absent", "incomplete", "failed", "damaged", "finished"]


@dataclass(frozen=True)
class Run:
    """One requested run: a model with its options, training options and a seed. ``preset``: that named it, or ""."""

    model: str
    options: dict[str, Any]
    training: Training
    seed: int = 0
    preset: str = field(default="", compare=False)

    @property
    def asked(self) -> str:
        """Name for --model and for displays: the preset's, or the model's."""
        return self.preset or self.model


class RunIdentity(NamedTuple):
    """``fields``: everything that can change the results of a run; ``id``: their digest, 12 hex digits."""

    fields: dict[str, Any]
    id: str


def run_identity(
    run: Run, store: str, sessions: str, validation: Validation, validation_sessions: str | None = None
) -> RunIdentity:
    """Return the identity of a run. Device, threads and paths are not part of it; run.json records them.

    ``store``: its fingerprint. ``sessions`` and ``validation_sessions``: digests of the sessions actually trained and
    validated on, so adding missing features to a store gives a new run. A model that is not trained by gradient has one
    run for all seeds and training settings, which are None in its fields. Raises as ``model_options``.
    """
    cls, parsed = model_options(run.model, run.options)
    held = {**validation.model_dump(mode="json"), "sessions": validation_sessions}
    fields = {
        "version": IDENTITY_VERSION,
        "store": store,
        "sessions": sessions,
        "model": {"name": run.model, "version": cls.version, "options": parsed.model_dump(mode="json")},
        "training": run.training.model_dump(mode="json") if cls.trainable else None,
        "validation": held if validation_sessions else None,
        "seed": run.seed if cls.trainable else None,
    }
    return RunIdentity(fields, digest(fields)[:RUN_ID_DIGITS])


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run. ``lease``: set while this process trains the run; required to write."""

    path: Path
    lease: Lease | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, runs: Path, dataset: str, model: str, run_id: str) -> RunFolder:
        return cls(runs / dataset / model / run_id)

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def model(self) -> str:
        return self.path.parent.name

    @property
    def dataset(self) -> str:
        return self.path.parent.parent.name

    @property
    def state(self) -> State:
        """State of the run; "damaged" if run.json is unreadable or a finished run differs from its seal."""
        try:
            record = self.record()
        except FileNotFoundError:
            return "incomplete" if self.path.is_dir() else "absent"
        except RunError:
            return "damaged"
        if record.get("finished") is not None:
            return "damaged" if self.damage else "finished"
        return "failed" if record.get("failed") else "incomplete"

    @property
    def damage(self) -> str:
        """Difference between the folder and its seal; "" if there is none, or no seal."""
        try:
            check_seal(self.path, RUN, self.id, TRAIN_AGAIN)
        except SealError as error:
            return str(error)
        return ""

    @property
    def sealed(self) -> bool:
        """Whether the folder has a seal; without one (a run of an earlier version), changed files are not detected."""
        return (self.path / SEAL).is_file()

    def record(self) -> dict[str, Any]:
        """run.json. FileNotFoundError when there is none, RunError when it is not JSON."""
        try:
            record = json.loads(self.run_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{self.run_file}: not valid JSON ({error}); train this run again") from error
        if not isinstance(record, dict):
            raise RunError(f"{self.run_file}: holds no object; train this run again")
        return record

    def metrics(self) -> list[dict[str, Any]]:
        """Return one entry per epoch; an incomplete last line (after an interruption) is ignored."""
        return _read_lines(self.path / METRICS)

    def diagnoses(self) -> list[dict[str, Any]]:
        """Return one entry per diagnosed epoch, {"epoch": ..., **``diagnose(...)``}; empty without diagnostics."""
        return _read_lines(self.path / DIAGNOSTICS)

    def append(self, values: dict[str, Any], file: str = METRICS) -> None:
        """Append an epoch's line to ``file``. As every write, raises RunError if another process trains the run."""
        self._check()
        # Opened before the second check: a later owner removes this file, so a late line is not in the folder.
        with naming(path := self.path / file, "write"), open(path, "a", encoding="utf-8") as handle:
            self._check()
            handle.write(json.dumps(values, allow_nan=False) + "\n")

    def save_model(self, model: MemoryModel) -> None:
        save_model(self.path, model, last=self._check)

    def load_state(self, backend: str, diagnostics: bool = False) -> RunState | None:
        """Return the saved state of an interrupted training (``diagnostics``: if all epochs have theirs), or None."""
        if self.state not in ("incomplete", "failed"):
            return None
        try:
            done = {line["epoch"] for line in self.metrics()}
            seen = {line["epoch"] for line in self.diagnoses()} if diagnostics else None
            state = load_state(self.path, backend)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        epochs = set(range(1, state.epoch + 1)) if state else set()
        return state if epochs <= done and (seen is None or epochs | {0} <= seen) else None

    def save_state(self, state: RunState, backend: str) -> None:
        save_state(self.path, state, backend, last=self._check)

    @contextmanager
    def training(self, record: dict[str, Any], after: int = 0) -> Iterator[RunFolder]:
        """Lock the folder for training after epoch ``after``, and remove the later files of an earlier attempt.

        Yields the folder with its lease. ``record`` is written to run.json, marked as not finished. The message of an
        exception is recorded there under "failed".

        Raises RunError when another process is training this run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locked:
            try:
                with naming(self.path, "write"):
                    lease = Lease(self.path)
            except StoreBusyError as error:
                raise RunError(f"this run is being trained by another process: {error}") from None
            locked.callback(lease.release)  # the system releases it when the process dies
            held = RunFolder(self.path, lease)
            remove_temporaries(self.path)  # of a trainer that lost its lease and can no longer publish them
            held._write({**record, "finished": None})
            for name in (SIDECAR, WEIGHTS, SEAL, "results.h5", "summary.json", RESULTS_SEAL):
                (self.path / name).unlink(missing_ok=True)
            held._start_after(after)
            try:
                yield held
            except Exception as error:
                with suppress(RunError, OSError):  # another process trains the run; or the disk is full
                    held.fail(error, record)
                raise

    def _start_after(self, epoch: int) -> None:
        """Remove the metrics and diagnostics of later epochs; for epoch 0 all of them, and the saved state."""
        if not epoch:
            remove_state(self.path)
        for file in (self.path / METRICS, self.path / DIAGNOSTICS):
            kept = [line for line in _read_lines(file) if line["epoch"] <= epoch] if epoch else []
            if kept:
                text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept)
                replace_atomically(file, text.encode(), last=self._check)
            else:
                file.unlink(missing_ok=True)

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished and seal it, after the model and the metrics were written."""
        self._write({**self.record(), "finished": summary})
        files = (self.run_file.name, SIDECAR, WEIGHTS, METRICS, DIAGNOSTICS)
        write_seal(self.path, RUN, self.id, [f for f in files if (self.path / f).is_file()], last=self._check)
        remove_state(self.path)

    def fail(self, error: Exception, record: dict[str, Any] | None = None) -> None:
        """Mark the run as failed (``record``: instead of run.json's); the state of a diverged run is removed."""
        self._write({**(record or self.record()), "finished": None, "failed": f"{type(error).__name__}: {error}"})
        if isinstance(error, DivergenceError):
            remove_state(self.path)

    def _write(self, record: dict[str, Any]) -> None:
        write_json(self.run_file, record, last=self._check)

    def _check(self) -> None:
        """Raise RunError unless this process has the run's lease."""
        if self.lease is None:
            raise RunError(f"{self.path} is not held for training: write to it inside RunFolder.training")
        try:
            self.lease.check()
        except StoreBusyError as error:
            raise RunError(f"another process trains this run now: {error}") from None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]  # a whole line ends in a newline


def list_runs(runs: Path) -> list[RunFolder]:
    """Return all run folders below ``runs`` (``<dataset>/<model>/<run id>``), finished or not, sorted by path."""
    return [RunFolder(path) for path in sorted(runs.glob("*/*/*")) if path.is_dir()]
