"""Shared parts of the commands: loading of specs and datasets, and output."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from manifests.commandline import repeated_options
from manifests.text import printable
from pipeline.commands._options import F, option_device, option_inputs, option_json, option_models

if TYPE_CHECKING:
    from manifests.schema import Dataset, RunSpec
    from pipeline.core.workspace import Workspace
    from pipeline.jobs.experiment import Experiment

INTERRUPTED = 130  # exit code
Printed: TypeAlias = Any  # what ``prints`` prints


@dataclass(frozen=True)
class Job:
    """SPEC of a command with its options. Spec and dataset are loaded at first use."""

    given: str
    overrides: tuple[str, ...]
    data: Path
    out: Path
    device: str = "auto"

    @cached_property
    def spec(self) -> RunSpec:
        """Return the checked spec; commands that it prints repeat the options of this call."""
        from pipeline.analysis.tuning.trials import read_spec
        from pipeline.jobs.specs import check_components

        words = repeated_options(self.overrides, self.data, self.out)
        spec = read_spec(self.given, self.overrides, shlex.join([self.given, *words]))
        check_components(spec)
        return spec

    @cached_property
    def dataset(self) -> Dataset:
        return load(self.spec, self.data)

    @property
    def workspace(self) -> Workspace:
        from pipeline.core.workspace import Workspace

        return Workspace(self.out)

    @property
    def parts(self) -> tuple[RunSpec, Dataset, Workspace]:
        return self.spec, self.dataset, self.workspace

    @property
    def experiment(self) -> Experiment:
        from pipeline.jobs.experiment import Experiment

        return Experiment(*self.parts, self.device, log)


def job_command(f: F, metavar: str = "SPEC") -> F:
    """Add SPEC, --set, --data and --out; call ``f`` with the ``Job`` that they and --device, if it has one, give."""

    @wraps(f)
    def call(spec: str, overrides: tuple[str, ...], data: Path, out: Path, device: str = "auto", **words: Any) -> Any:
        return f(Job(spec, overrides, data, out, device), **words)

    return click.argument("spec", metavar=metavar)(option_inputs(call))


def sessions_command(f: F) -> F:
    """As ``job_command``, for a command that needs sessions: a catalog is refused before anything is read or computed."""

    @wraps(f)
    def call(job: Job, **words: Any) -> Any:
        from pipeline.jobs.specs import require_sessions

        require_sessions(job.spec, job.dataset)
        return f(job, **words)

    return job_command(call)


def stage2_command(f: F) -> F:
    """Add SPEC and its options, --model, --seeds and --device; call ``f`` with experiment, models and seeds."""

    @wraps(f)
    def call(job: Job, **words: Any) -> Any:
        from pipeline.jobs.identities import asked_runs
        from pipeline.jobs.specs import require_sessions

        asked_runs(job.spec, words["models"])  # an unknown model is named before anything is read
        require_sessions(job.spec, job.dataset)
        return f(job.experiment, **words)

    return job_command(option_models(option_device(call)))


def load(spec: RunSpec, data: Path) -> Dataset:
    from manifests.load import load_dataset

    dataset = load_dataset(spec, data)
    for note in dataset.notes:
        log(f"note: {note}")
    return dataset


def log(text: str) -> None:
    click.echo(printable(text), err=True)


def show(text: str, nl: bool = True) -> None:
    """Print text to stdout, with terminal control characters (in a name, a note or a caption) escaped."""
    click.echo(printable(text), nl=nl)


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows progress on stderr: one line that is overwritten on a terminal, a line each elsewhere."""
    live, shown = sys.stderr.isatty(), False

    def say(text: str) -> None:
        nonlocal shown
        shown = True
        click.echo(f"\r\x1b[K{printable(text)}" if live else printable(text), err=True, nl=not live)

    try:
        yield say
    finally:
        if live and shown:
            click.echo(err=True)


def prints(f: F) -> F:
    """Add --json, and print what ``f`` returns: an object with ``as_dict`` and ``text``, or (values, text).

    A third part is the exit code.
    """

    @wraps(f)
    def call(*given: Any, as_json: bool, **words: Any) -> None:
        found = f(*given, **words)
        values, text, *code = found if isinstance(found, tuple) else (found.as_dict(), found.text())
        show(json.dumps(values, indent=2, default=str) if as_json else text)
        if any(code):
            sys.exit(code[0])

    return option_json(call)
