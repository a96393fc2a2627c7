"""SIGTERM ends a command as Ctrl-C does: exit code 130, one line; also where Ctrl-C is ignored, as in a background job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import signal, sys, time
import click
import cli
if sys.argv[1] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
def wait():
    print("ready", flush=True)
    time.sleep(60)
cli.main.add_command(click.Command("wait", callback=wait))
cli.main(["wait"])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGTERM")
@pytest.mark.parametrize("ctrl_c", ["handled", "ignored"])
def test_sigterm_is_like_ctrl_c(ctrl_c: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, ctrl_c], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors == "interrupted: what was finished is kept; run the same command to resume\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
