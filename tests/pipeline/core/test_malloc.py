"""A worker that Dask started keeps the memory of its image buffers."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from pipeline.core.cluster import keep_freed_memory
changed = keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    buffer = bytes(bytearray(1_000_000))
print(changed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(threshold: str | None) -> tuple[bool, int]:
    """(whether anything was changed, page faults of two hundred megabytes that are used one after another)."""
    env = {name: value for name, value in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}
    env |= {} if threshold is None else {"MALLOC_TRIM_THRESHOLD_": threshold}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    changed, faults = done.stdout.split()
    return changed == "True", int(faults)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_dask_s_threshold_is_lifted_and_a_user_s_is_not() -> None:
    changed, faults = run("65536")
    kept, given_back = run("65537")
    assert changed and not kept and not run(None)[0]
    assert faults < given_back / 5
