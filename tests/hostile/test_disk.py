"""A full and a read-only disk after stage 1: path, needed and free space on one line; what was finished stays.

On a small file system of its own (tmpfs), which only root can mount: skipped elsewhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from pipeline.views.study.store import Question, StudyDiskError, StudyFile
from tests.caption_project import CAPTIONS, caption_project

SPEC = f"""
name = "small"
{CAPTIONS}dim = 8
[composer.fit]
epochs = 2
[training]
epochs = 3
batch_size = 16
[models.avg]
[models.lstm]
hidden = 4
"""
MODELS = [{"label": n, "title": n, "run": n, "weights": n} for n in "ab"]
STUDY = {"seed": 0, "spec": "small", "k": 1, "models": MODELS}
# command, words after it, what it writes: each fails on the full disk, then on the read-only one, then ends well
STEPS = (
    ("extract", ()),
    ("fit-composer", ()),
    ("train", ("--model", "lstm")),
    ("evaluate", ("--model", "lstm")),
    ("report", ("--file", "OUT/report.html")),
)


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of 12 MB, mounted at ``place``; skip the test where it cannot be."""
    if shutil.which("mount") is None or os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk(tmp_path_factory.mktemp("disk")) as place:
        yield place


def fill(disk: Path) -> Path:
    """A file that takes all free space."""
    path = disk / "filler"
    with open(path, "wb", buffering=0) as handle:
        try:
            while True:
                handle.write(b"\0" * 4096)
        except OSError:
            return path


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def call(project: Path, disk: Path, command: str, words: tuple[str, ...]) -> tuple[int, str]:
    out = disk / "out"
    given = [word.replace("OUT", str(disk)) for word in words]
    folders = ["--data", str(project / "data"), "--out", str(out)]
    done = CliRunner().invoke(main, [command, str(project / "small.toml"), *given, *folders])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.mark.slow
def test_each_command_after_stage_1(tmp_path: Path, disk: Path) -> None:
    project = caption_project(tmp_path, "small", SPEC)
    (disk / "out").mkdir()
    for command, words in STEPS:
        filler = fill(disk)
        code, output = call(project, disk, command, words)
        last = output.strip().splitlines()[-1]
        assert code == 1 and "No space left on device" in last and str(disk) in last, (command, output)
        assert "free" in last and "run the same command again" in last, (command, last)
        filler.unlink()
        remount(disk, "ro")
        code, output = call(project, disk, command, words)
        last = output.strip().splitlines()[-1]
        remount(disk, "rw")
        assert code == 1 and "Read-only file system" in last and str(disk) in last, (command, output)
        code, output = call(project, disk, command, words)
        assert code == 0, (command, output)


def test_a_study_on_a_full_disk_keeps_its_answers(disk: Path) -> None:
    questions = [Question(0, "s", ((("a",), ("x",)), (("b",), ("y",))))]
    study = StudyFile.create(disk / "study.sqlite", STUDY, questions)
    study.join("ann")
    study.answer("ann", 0, 0, 1.0)
    filler = fill(disk)
    with pytest.raises(StudyDiskError) as error:
        for n in range(2000):  # a few answers fit into pages that the file has already
            study.join(f"participant {n} {'x' * 40}")
    text = str(error.value)
    assert f"cannot use the study {disk / 'study.sqlite'}: " in text and "bytes free" in text and "\n" not in text
    assert (
        "answers that were acknowledged are kept; free space on that disk, and try again" in text
        and error.value.status == 507
    )
    filler.unlink()
    assert len(StudyFile(disk / "study.sqlite").answers()) == 1
    filler = fill(disk)
    with pytest.raises(StudyDiskError, match="cannot use the study"):
        StudyFile.create(disk / "other.sqlite", STUDY, questions)
    filler.unlink()
