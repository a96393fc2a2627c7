"""The compiled loops of a turn at zeros and at what is no number; their equality with the reference: test_equality.py.

In single precision, which trainings compile anyway."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="numba is not installed: the extras `cpu` and `test` bring it")

from pipeline.training.cascade import numba_loops
from pipeline.training.cascade.stacked import FastCascade
from pipeline.training.cascade.turn_numba import NumbaTurn
from tests.conftest import REPOSITORY
from tests.pipeline.training.cascade.cascades import batch, cascade


@pytest.mark.parametrize("zero", ["memory", "key"])
def test_addressing_has_a_finite_gradient_at_a_zero(zero: str) -> None:
    """Memory, norms, states, raw outputs and the head's weights before the turn, of one run, stage and turn, two sessions, three slots."""
    rng = np.random.default_rng(0)

    def random(size: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(size, np.float32)

    memory, raws = random(size=(1, 1, 2, 3, 4)), random(size=(1, 1, 1, 2, 10))
    if zero == "memory":
        memory[:] = 0
    else:
        raws[..., :4] = 0
    norms = np.maximum(np.linalg.norm(memory, axis=-1), numba_loops.NORM_FLOOR)
    states, previous = np.zeros((1, 1, 2, 2, 4), np.float32), np.full((1, 1, 2, 3), 1 / 3, np.float32)
    cosines, weights, d_previous, dots, pulls = (np.full(previous.shape, np.nan, np.float32) for _ in range(5))
    numba_loops.read(memory, norms, states, raws, previous, cosines, weights, 0, 0)
    d_raws, d_read = np.full(raws.shape, np.nan, np.float32), random(size=(1, 1, 2, 4))
    numba_loops.read_backward(
        memory,
        norms,
        raws,
        previous,
        cosines,
        d_read,
        random(size=previous.shape),
        d_raws,
        d_previous,
        dots,
        pulls,
        0,
        0,
    )
    assert np.allclose(weights.sum(-1), 1, rtol=0, atol=1e-6)
    assert all(np.isfinite(found).all() for found in (states, d_raws, d_previous, dots, pulls))


def test_what_is_no_number_stays_none() -> None:
    """A step whose loss is not finite is left out: compiled sums must not hide it."""
    queries, _, _ = batch(3)
    queries[2, 1, 0] = torch.nan
    model = cascade(0, "constant", torch.float32, stages=2)
    found = FastCascade([model], NumbaTurn()).eval()(queries.float()[None])[0]
    assert bool(found[2].isnan().any()) and bool(found[0].isfinite().all())


@pytest.mark.slow
def test_compiling_is_announced_once_and_a_cached_loop_is_not_compiled(tmp_path: Path) -> None:
    script = "from pipeline.training.cascade import numba_loops as loops; loops._norm_slope(1.0)"
    command, environment = [sys.executable, "-c", script], os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stderr
        for _ in range(2)
    ]
    assert said[0].count("compiling its loops for this processor") == 1 and not said[1]
