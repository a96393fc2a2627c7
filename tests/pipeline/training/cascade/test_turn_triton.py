"""The Triton kernels of a turn against the reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined
pytest.importorskip("triton", reason="Triton is not installed: the extra `test` brings it on Linux")

from pipeline.training.cascade import turn_triton
from pipeline.training.cascade.stacked import FastCascade
from pipeline.training.cascade.turn_triton import TritonTurn
from tests.pipeline.training.cascade.cascades import GRADIENTS, OUTPUTS, batch, cascade, differences

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = () if DEVICE.type == "cuda" else pytest.mark.slow  # the interpreter takes seconds


@pytest.mark.parametrize(
    ("memory", "stages", "slots", "turns"),
    [
        pytest.param("random", 3, 1, 2, marks=INTERPRETED),
        pytest.param("random", 2, 5, 3, marks=INTERPRETED),
        pytest.param("constant", 3, 2, 3, marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients_equal_the_reference(memory: str, stages: int, slots: int, turns: int) -> None:
    found = differences(
        [cascade(stages, memory, stages=stages, slots=slots)], [batch(turns, sessions=2)], TritonTurn(), DEVICE
    )
    assert found.outputs <= OUTPUTS and found.statistics <= OUTPUTS
    assert found.gradient <= GRADIENTS, found.parameter


@pytest.mark.slow
@pytest.mark.parametrize(("stages", "slots"), [(4, 16), (8, 4)])
def test_deep_cascades_equal_the_reference(stages: int, slots: int) -> None:
    """Sixteen stages are a longer loop: they are compiled in test_kernel_binaries.py, and not interpreted."""
    found = differences(
        [cascade(stages, "constant", stages=stages, slots=slots)], [batch(2, sessions=2)], TritonTurn(), DEVICE
    )
    assert found.outputs <= OUTPUTS and found.statistics <= OUTPUTS
    assert found.gradient <= GRADIENTS, found.parameter


@pytest.mark.parametrize("runs", [pytest.param(2, marks=INTERPRETED)])
def test_several_runs_at_once_equal_each_run_alone(runs: int) -> None:
    models = [cascade(seed, "random", stages=2, width=5) for seed in range(runs)]
    found = differences(models, [batch(2, seed, sessions=2) for seed in range(runs)], TritonTurn(), DEVICE)
    assert found.outputs <= OUTPUTS and found.statistics <= OUTPUTS
    assert found.gradient <= GRADIENTS, found.parameter


@pytest.mark.parametrize("tile", [pytest.param(32, marks=INTERPRETED)])
def test_products_with_the_gram_matrix_go_through_its_rows(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few at a time, as with many hidden units, and a last part that is not full."""
    monkeypatch.setattr(turn_triton, "TILE", tile)
    found = differences([cascade(1, stages=2, hidden=17)], [batch(2, sessions=2)], TritonTurn(), DEVICE)
    assert found.outputs <= OUTPUTS and found.gradient <= GRADIENTS, found.parameter


@pytest.mark.slow
def test_learned_memories_get_their_gradient() -> None:
    found = differences([cascade(3, stages=2, init="symmetry-breaking")], [batch(2, sessions=2)], TritonTurn(), DEVICE)
    assert found.outputs <= OUTPUTS and found.statistics <= OUTPUTS
    assert found.gradient <= GRADIENTS, found.parameter


def test_single_precision_is_near_the_reference() -> None:
    model = cascade(0, "constant", torch.float32, stages=2).to(DEVICE)
    queries, lengths, _ = batch(2, sessions=2)
    queries = queries.float().to(DEVICE)
    found = FastCascade([model], TritonTurn())(queries[None])[0]
    assert torch.allclose(found, model(queries, lengths.to(DEVICE)), rtol=1e-4, atol=1e-4)
