"""Random damage to every file that the commands read: only our errors, within bounds of memory and time.

Specs, JSONL files, arrays, model folders, stores, records, composers, checkpoints, saved states, results, studies and
saved dialogues of a small trained project are damaged one at a time (flipped bytes, cuts, insertions, blanks, other
values in JSON), and commands that read them are run. ``python -m tests.hostile.test_fuzz ROUNDS`` prints the counts
that docs/bad-input.md shows.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli import main
from tests.caption_project import caption_project
from tests.hostile.makers import damage
from tests.hostile.test_disk import SPEC, STUDY

SECONDS, MEGABYTES = 60, 1500  # bounds of one command: alarm, growth of the process's largest memory
EXITS = {0, 1, 2, 3, 4}
# kind of file -> (pattern below the project, commands that read it)
TARGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "spec": ("small.toml", ("validate", "status")),
    "dataset": ("data/world/*.json*", ("validate", "status")),
    "arrays": ("arrays/*", ("cache import",)),
    "model folder": ("model/*", ("plan", "status")),
    "store": ("out/stores/**/*.h5", ("status", "evaluate", "cache verify")),
    "store records": ("out/stores/**/*.json*", ("status", "evaluate", "cache verify", "cache ls")),
    "extraction record": ("out/extracted/*.json", ("status", "evaluate")),
    "bindings": ("out/extracted/bindings/**/*", ("status", "evaluate")),
    "composer": ("out/stores/**/composers/**/*", ("fit-composer", "status")),
    "run": ("out/runs/**/*.json*", ("status", "evaluate", "ls runs", "train")),
    "checkpoint": ("out/runs/**/model.*", ("evaluate", "status")),
    "results": ("out/runs/**/results*", ("status", "ls runs", "report")),
    "saved state": ("out/runs/**/resume*", ("train", "ls runs")),
    "study": ("study.sqlite", ("study results",)),
    "saved dialogues": ("saved/*", ("validate saved.toml",)),
}
SHORT = ("spec", "dataset", "extraction record", "run", "results", "study", "saved dialogues")


def call(project: Path, command: str) -> Any:
    """A command on the project's folders."""
    spec = str(project / "small.toml")
    folders = ["--data", str(project / "data"), "--out", str(project / "out")]
    words = {
        "cache import": ["cache", "import", str(project / "arrays"), spec, *folders],
        "cache verify": ["cache", "verify", *folders[2:]],
        "cache ls": ["cache", "ls", *folders[2:]],
        "ls runs": ["ls", "runs", *folders[2:]],
        "report": ["report", spec, "--file", str(project / "report.html"), *folders],
        "study results": ["study", "results", str(project / "study.sqlite")],
        "validate": ["validate", spec, *folders[:2]],
        "validate saved.toml": ["validate", str(project / "saved.toml"), *folders[:2]],
    }.get(command, [command, spec, *folders])
    return CliRunner().invoke(main, words)


def build(folder: Path) -> Path:
    """A trained and evaluated project, with an interrupted run, a study, arrays and saved dialogues."""
    from manifests.datasets.jsonl import export
    from pipeline.views.study.store import Question, StudyFile
    from tests.worlds import world

    project = caption_project(folder, "small", SPEC)
    for command in ("extract", "fit-composer", "train", "evaluate"):
        done = call(project, command)
        assert done.exit_code == 0, (command, done.output, done.exception)
    questions = [Question(0, "s", ((("a",), ("x",)), (("b",), ("y",))))]
    study = StudyFile.create(project / "study.sqlite", STUDY, questions)
    study.join("ann")
    study.answer("ann", 0, 0, 1.0)
    options = export(world(), project / "saved")
    (project / "saved/dialogues.json").write_text(json.dumps({"options": options, "dialogues": {}}))
    (project / "saved.toml").write_text(
        SPEC.format(model=project / "model").replace('"world"', f'"{project / "saved"}"')
    )
    (project / "arrays").mkdir()
    for table in ("query", "target"):
        np.save(project / f"arrays/{table}.npy", np.eye(3, dtype=np.float32))
        (project / f"arrays/{table}.ids.txt").write_text("a\nb\nc\n")
    _interrupted(project)
    return project


def _interrupted(project: Path) -> None:
    """Turn the run of the LSTM into one that was interrupted after epoch 2, by a copy next to it."""
    (run,) = (project / "out/runs/world/lstm").iterdir()
    from pipeline.training.resume import RunState, save_state

    copy = run.with_name("0" * 12)
    shutil.copytree(run, copy)
    save_state(copy, RunState(2, tensors={}), "reference")


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Raise AssertionError if the context takes more than SECONDS, or MEGABYTES more memory."""

    def late(number: int, frame: Any) -> None:
        raise AssertionError(f"{what}: more than {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, f"{what}: {grown:,.0f} MB"


def attempt(project: Path, kind: str, rng: random.Random) -> tuple[str, int]:
    """Damage a file of ``kind``, run a command that reads it, mend it; return (command, exit code)."""
    pattern, commands = TARGETS[kind]
    files = sorted(p for p in project.glob(pattern) if p.is_file() and not p.name.startswith("."))
    assert files, f"no file of {kind}"
    file, command = rng.choice(files), rng.choice(commands)
    kept = file.read_bytes()
    changed = damage(kept, rng, file.suffix in (".json", ".jsonl"))
    writes = command in ("evaluate", "train", "fit-composer", "cache import", "report")
    saved = project.with_name(f"{project.name}-kept")
    if writes:
        shutil.copytree(project / "out", saved)
    file.write_bytes(changed)
    what = f"{command} with a damaged {file.relative_to(project)}"
    try:
        with bounded(what):
            done = call(project, command)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise AssertionError(f"{what}: {type(done.exception).__name__}: {done.exception}") from done.exception
        assert done.exit_code in EXITS and "Traceback" not in done.output, f"{what}: {done.output}"
        return command, done.exit_code
    finally:
        if writes:
            shutil.rmtree(project / "out")
            saved.rename(project / "out")
        file.write_bytes(kept)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fuzz"))


HERE = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGALRM")
@settings(HERE, max_examples=15)
@given(kind=st.sampled_from(SHORT), seed=st.integers(0, 2**32))
def test_damaged_files_give_our_errors(project: Path, kind: str, seed: int) -> None:
    _, code = attempt(project, kind, random.Random(seed))
    assert code in EXITS


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGALRM")
@settings(HERE, max_examples=100)
@given(kind=st.sampled_from(sorted(TARGETS)), seed=st.integers(0, 2**32))
def test_damaged_files_give_our_errors_at_length(project: Path, kind: str, seed: int) -> None:
    _, code = attempt(project, kind, random.Random(seed))
    assert code in EXITS


def count(project: Path, rounds: int, tell: Callable[[str], None]) -> tuple[dict[str, Counter], list[str]]:
    """Try every kind ``rounds`` times; return kind -> exit codes, and what was found."""
    codes: dict[str, Counter] = {}
    found = []
    for kind in TARGETS:
        codes[kind] = Counter()
        for number in range(rounds):
            try:
                codes[kind][attempt(project, kind, random.Random(f"{kind} {number}"))[1]] += 1
            except AssertionError as error:
                codes[kind][-1] += 1
                found.append(str(error))
                tell(str(error)[:600])
    return codes, found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        here = Path(place) / "project"
        here.mkdir()
        made, errors = count(build(here), int(sys.argv[1]), lambda line: print("FOUND", line, flush=True))
        for name, seen in made.items():
            print(f"| {name} | {sum(seen.values())} | {dict(sorted(seen.items()))} |")
        print(sum(sum(c.values()) for c in made.values()), "tries,", len(errors), "not our errors")
