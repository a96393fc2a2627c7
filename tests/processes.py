"""Programs in forked processes: a new interpreter takes seconds to import torch."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TextIO

import pytest


class Program(NamedTuple):
    """A running program: its process, which leads a group of its own, and what it prints."""

    process: BaseProcess
    stdout: TextIO
    stderr: TextIO

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def finish(self, timeout: float = 60) -> tuple[int | None, str, str]:
        """Wait for the end of the program: (exit code, stdout and stderr not yet read)."""
        with ThreadPoolExecutor() as pool:  # both at once: a full pipe would stop the program
            out, errors = pool.map(lambda stream: stream.read(), (self.stdout, self.stderr))
        self.process.join(timeout)
        return self.process.exitcode, out, errors


@contextlib.contextmanager
def forked(program: Callable[..., Any], *args: Any, encoding: str = "utf-8") -> Iterator[Program]:
    """Run ``program(*args)`` in a forked process with own stdout and stderr, as a shell starts it; killed at the end."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    out, err = os.pipe(), os.pipe()

    def run() -> None:
        os.setsid()
        for number, (reading, writing) in enumerate((out, err), 1):
            os.close(reading)
            os.dup2(writing, number)
            os.close(writing)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w", closefd=False), encoding) for n in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
        program(*args)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    for _, writing in (out, err):
        os.close(writing)
    with open(out[0], encoding=encoding) as stdout, open(err[0], encoding=encoding) as stderr:
        try:
            yield Program(process, stdout, stderr)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join(60)
