"""A Dask scheduler that is killed during a job: one clear line, and the same command resumes.

The worker process is stopped (SIGSTOP), so that its tasks are surely unfinished when the scheduler dies.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from manifests.ablation_spec import Point
from pipeline.analysis.ablation.plan import Group
from pipeline.analysis.ablation.run import Job, run_on_cluster
from pipeline.core.cluster import ClusterError, connect
from tests.caption_project import CAPTIONS, call, caption_project

pytest.importorskip("distributed", reason="pip install 'dask[distributed]'")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL and SIGSTOP")
ROOT = Path(__file__).resolve().parents[2]
LINE = "ended during the job, or its connection broke: start it and its workers again, and run the same command"


@contextmanager
def dask(folder: Path) -> Iterator[tuple[str, subprocess.Popen, subprocess.Popen]]:
    """Yield (address, scheduler process, worker process)."""
    file = folder / "scheduler.json"
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    started = []
    for role, words in (
        ("scheduler", ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]),
        ("worker", ["--no-nanny", "--no-dashboard", "--nthreads", "2", "--local-directory", str(folder)]),
    ):
        command = [sys.executable, "-m", f"distributed.cli.dask_{role}", "--scheduler-file", str(file), *words]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": found}))
    try:
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text().endswith("}"):
            assert time.monotonic() < deadline, "the scheduler does not start"
            time.sleep(0.05)
        yield json.loads(file.read_text())["address"], *started
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def kill_when_busy(address: str, scheduler: subprocess.Popen, worker: subprocess.Popen) -> threading.Thread:
    """Stop the worker; kill the scheduler as soon as it has sent a task to the worker."""
    from distributed import Client

    watching = Client(address, timeout=60, set_as_default=False)
    watching.wait_for_workers(1, timeout=60)
    worker.send_signal(signal.SIGSTOP)

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not any(watching.processing().values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        scheduler.send_signal(signal.SIGKILL)
        watching.close()

    killer = threading.Thread(target=kill)
    killer.start()
    return killer


@pytest.mark.slow
def test_a_task_of_a_killed_scheduler(tmp_path: Path) -> None:
    with dask(tmp_path) as (address, scheduler, worker):
        killer = kill_when_busy(address, scheduler, worker)
        with pytest.raises(ClusterError, match=f"the Dask scheduler at {address} {LINE}"), connect(address) as client:
            client.submit(sum, [1, 2], pure=False).result()
        killer.join()


def test_an_error_of_the_job_stays_itself(tmp_path: Path) -> None:
    with dask(tmp_path) as (address, _, _), pytest.raises(OSError, match="no space"), connect(address):
        raise OSError(28, "no space")


@pytest.mark.slow
def test_an_extraction_of_a_killed_scheduler(tmp_path: Path) -> None:
    project = caption_project(tmp_path, "small", f'name = "small"\n{CAPTIONS}[models.last]\n')
    spec = str(project / "small.toml")
    with dask(tmp_path) as (address, scheduler, worker):
        killer = kill_when_busy(address, scheduler, worker)
        done = call(project, "extract", spec, "--scheduler", address)
        killer.join()
    assert isinstance(done.exception, SystemExit) and done.exit_code == 1, (done.output, done.exception)
    assert LINE in done.output.strip().splitlines()[-1] and "Traceback" not in done.output
    assert call(project, "extract", spec).exit_code == 0


@pytest.mark.slow
def test_an_ablation_of_a_killed_scheduler(tmp_path: Path) -> None:
    job = Job("{}", str(tmp_path), str(tmp_path), "cpu", 1)
    group = Group(Point(1, "lstm", {}, {}), ())
    with dask(tmp_path) as (address, scheduler, worker):
        killer = kill_when_busy(address, scheduler, worker)
        with pytest.raises(ClusterError, match=LINE):
            run_on_cluster(job, [group], address)
        killer.join()
