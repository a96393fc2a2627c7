"""GPU check in at most five minutes: the step table, a table's stages, a short extraction, the tests that need a GPU.

    fashion-ntm bench gpu --file gpu.json

Each part is a separate process with its own time limit. A part that fails or is stopped does not end the others, and its
measurements so far are kept. FILE is rewritten after each part.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch

from manifests.errors import FashionNTMError
from pipeline.bench import extract as extraction
from pipeline.bench import selected
from pipeline.bench import table as stages_table
from pipeline.bench._machine import CLI
from pipeline.bench._subjects import Here, Sizes

ROOT = CLI.parent
TESTS = (  # the kernels, and every trained model as a captured graph: nothing else in the tests of training uses a GPU
    "tests/pipeline/training/cascade/test_turn_triton.py",
    "tests/pipeline/training/backends/test_stacked.py::test_captured_runs_are_the_runs_alone",
    "tests/pipeline/training/backends/test_trainers.py::test_captured_runs_side_by_side_are_the_runs_alone",
)
SUBJECTS = ("triton", "triton K=5", "triton K=25", "triton high", "graph")
SECONDS = {"steps": 70, "table": 50, "extract": 60, "tests": 120}  # time limit of each part, in running order


def run(
    parts: str | Sequence[str] = tuple(SECONDS),
    stages: Sequence[int] = (4, 8, 2, 1, 16),
    subjects: Sequence[str] = SUBJECTS,
    batch: int = 80,
    turns: int = 4,
    dim: int = 768,
    slots: int = 4,
    hidden: int = 100,
    repeats: int = 20,
    images: int = 768,
    layers: int = 8,
    seeds: int = 6,
    train: int = 3680,
    test: int = 1000,
    workers: int = 4,
    tests: str | Sequence[str] = TESTS,
    device: str = "cuda",
    seconds: int = 0,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Return the figures of each part, with its seconds and, if it failed, its "error".

    ``subjects``: of the step table, as named by ``bench._subjects``; each of ``repeats`` steps is timed alone.
    ``seeds``, ``train``, ``test``: of ``bench table``. ``images``, ``layers``: of the extraction. ``tests``,
    ``workers``: tests and number of processes of pytest. ``seconds``: a limit for every part, 0 for the part's own.
    ``save`` receives the figures after each part. A ``device`` other than CUDA serves to try the benchmark itself.
    Raises ManifestError for an unknown part, FashionNTMError if the device does not exist.
    """
    asked = selected("part", parts, SECONDS)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise FashionNTMError("bench gpu measures a CUDA device, and torch sees none on this machine")
    sizes = {"batch": batch, "turns": turns, "dim": dim, "slots": slots, "hidden": hidden, "device": device}
    given = {"sizes": sizes, "stages": list(stages), "subjects": list(subjects), "repeats": repeats}
    bench = [sys.executable, str(CLI), "bench"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), "--dist=load"]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found"
        extract = {"subjects": "engine", "rounds": 2, "images": images, "layers": layers, "device": device}
        table = {"seeds": seeds, "train": train, "test": test, "dim": dim, "device": device}
        commands = {
            "steps": [sys.executable, "-m", __name__, json.dumps(given), str(file)],
            "table": [*bench, "table", *_settings(table), "--file", str(file)],
            "extract": [*bench, "extract", *_settings(extract), "--file", str(file)],
            "tests": [*pytest, *(tests.split() if isinstance(tests, str) else tests), f"--junitxml={file}"],
        }
        for part in asked:
            file.unlink(missing_ok=True)
            figures[part] = _part(commands[part], seconds or SECONDS[part])
            try:
                figures[part] |= _READERS[part](file.read_text(encoding="utf-8"))
            except (OSError, ValueError, KeyError) as error:  # ended before or during writing
                figures[part].setdefault("error", f"left no figures: {error}")
            print(f"{part}: {_line(part, figures[part])}", file=sys.stderr, flush=True)
            if save is not None:
                save(figures)
    return figures


def _settings(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def _part(command: list[str], limit: float) -> dict[str, Any]:
    """Run a command in its own process group, which ends with it; its output goes to this process's stderr."""
    began = time.perf_counter()
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    env = os.environ | {"PYTHONPATH": path}
    process = subprocess.Popen(command, cwd=ROOT, stdout=2, start_new_session=True, env=env)
    try:
        code = process.wait(limit)
        error = f"ended with code {code}" if code else ""
    except subprocess.TimeoutExpired:
        error = f"stopped after its limit of {limit:.0f} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers too, even if it has ended
        process.wait()
    return {"seconds": time.perf_counter() - began} | ({"error": error} if error else {})


def _tests(text: str) -> dict[str, Any]:
    """Return the counts of pytest's report, and the failed tests."""
    counts = ("tests", "failures", "errors", "skipped")
    found = {name: int(re.findall(rf'\b{name}="(\d+)"', text)[0]) for name in counts}
    cases = re.split(r"<testcase ", text)[1:]
    failed = [re.findall(r'\bname="([^"]*)"', case)[0] for case in cases if re.search("<(failure|error)", case)]
    return {**found, "failed": failed}


_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "steps": lambda text: {"steps": [json.loads(line) for line in text.splitlines()]},
    "table": lambda text: {"figures": json.loads(text)["figures"]},
    "extract": lambda text: {"figures": json.loads(text)["figures"]},
    "tests": _tests,
}


def time_steps(given: dict[str, Any], file: Path) -> None:
    """Write milliseconds per step of each subject at each C, one JSON line per result or failure, immediately."""
    sizes = Sizes(**given["sizes"])
    for c in given["stages"]:
        for name in given["subjects"]:
            row: dict[str, Any] = {"stages": c, "subject": name}
            subject: Here | None = None
            try:
                subject = Here.of(sizes, c, name)
                row["first_s"] = subject.seconds()  # includes compilation and capture
                subject.seconds()
                times = [1e3 * subject.seconds() for _ in range(given["repeats"])]
                row |= {"ms": median(times), "fastest_ms": min(times)}
            except Exception as error:  # a kernel that does not compile or a full GPU must not stop the others
                row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            subject = None
            if sizes.device.startswith("cuda"):
                torch.cuda.empty_cache()
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            print(f"  C = {c}, {name}: {row.get('error') or format(row['ms'], '.2f') + ' ms'}", flush=True)


def _line(part: str, found: dict[str, Any]) -> str:
    words = [f"{found['seconds']:.0f} s"]
    if part == "steps" and "steps" in found:
        words.append(f"{sum('ms' in row for row in found['steps'])} of {len(found['steps'])} subjects timed")
    if part == "tests" and "tests" in found:
        words.append(f"{found['tests']} tests, {found['skipped']} skipped, {len(found['failed'])} failed")
        words += found["failed"][:5]
    return "; ".join(words + ([found["error"]] if "error" in found else []))


def render(figures: dict[str, Any]) -> str:
    """Return one line per part, the step table in milliseconds, and the extraction's own text."""
    lines = [f"{part}: {_line(part, found)}" for part, found in figures.items()]
    if rows := figures.get("steps", {}).get("steps", []):
        stages = sorted({row["stages"] for row in rows})
        ms = {(row["subject"], row["stages"]): f"{row['ms']:.2f}" if "ms" in row else "failed" for row in rows}
        lines += ["", "ms a step".ljust(14) + "".join(f"{f'C = {c}':>10}" for c in stages)]
        for name in dict.fromkeys(row["subject"] for row in rows):
            lines.append(name.ljust(14) + "".join(f"{ms.get((name, c), ''):>10}" for c in stages))
    for part, bench in (("table", stages_table), ("extract", extraction)):
        if "figures" in figures.get(part, {}):
            lines += ["", bench.render(figures[part]["figures"])]
    return "\n".join(lines)


if __name__ == "__main__":
    time_steps(json.loads(sys.argv[1]), Path(sys.argv[2]))
