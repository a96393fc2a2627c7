"""The training benchmark measures what it says, at a size that takes no time."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest
import torch

from manifests.errors import ManifestError
from pipeline.bench import train
from pipeline.bench._machine import machine
from pipeline.bench._subjects import Apart, Sizes, peak_bytes


def test_figures_and_table() -> None:
    result = train.run(
        stages=(1, 2), batch=4, turns=2, dim=8, slots=2, hidden=3, repeats=1, runs=2, threads=1, apart=False
    )
    json.dumps(result, allow_nan=False)
    names = ["public style", "reference", "fast"] + (["graph"] if torch.cuda.is_available() else [])
    shown = [(r["stages"], r["backend"]) for r in result["steps"]]
    assert set(shown) >= {(c, name) for c in (1, 2) for name in names}
    assert any(name.endswith("K=2") for _, name in shown)
    assert all(r["ms"] > 0 and r["first_s"] > 0 and r["floor_ms"] > 0 and r["gflop"] > 0 for r in result["steps"])
    counts = {row["backend"]: row["operations"] for row in result["steps"] if row["stages"] == 2}
    assert counts["public style"] > counts["reference"] > 0 < counts["fast"]
    # The public style and the reference do the same products, so one floor serves all rows of a C.
    assert len({r["floor_ms"] for r in result["steps"] if r["stages"] == 2}) == 1
    text = train.render(result)
    assert "x GEMM floor" in text and "100 epochs Shoes" in text and "one turn of a dialogue" in text


def test_rounded_products_are_timed_beside_the_exact_ones_and_their_error_is_stated() -> None:
    result = train.run(
        stages=(2,), batch=4, turns=2, dim=8, hidden=3, repeats=1, runs=0, threads=1, matmul="medium", apart=False
    )
    names = [row["backend"] for row in result["steps"]]
    assert names[-1] == f"{names[-2]} medium"
    assert "C = 2: medium products change f' by" in train.render(result)


def test_another_rounding_is_refused_before_anything_is_timed() -> None:
    with pytest.raises(ManifestError, match=r"matmul=low.*choose one of highest, high, medium"):
        train.run(stages=(2,), matmul="low")


def test_the_compiled_reference_tells_how_long_it_compiled() -> None:
    row = {
        "stages": 4,
        "backend": "compiled",
        "ms": 5.0,
        "fastest_ms": 4.0,
        "first_s": 61.5,
        "floor_ms": 2.0,
        "gflop": 1.0,
        "threads": 1,
        "peak_mb": None,
        "operations": None,
        "parameters": 10,
    }
    result = {
        "machine": machine(),
        "device": "cpu",
        "shape": {"batch": 4},
        "runs": 0,
        "steps": [row | {"backend": "reference"}, row],
    }
    assert "C = 4: the compiled reference's first step, compilation included: 61.5 s" in train.render(result)


@pytest.mark.slow  # it imports the compiler
def test_the_compiled_reference_is_one_that_this_torch_takes() -> None:
    """Made, not stepped: compiling takes minutes."""
    assert callable(Sizes(4, 2, 8, 2, 3, "cpu").step(1, "compiled"))


@pytest.mark.slow
def test_a_subject_apart_steps_when_told_and_ends() -> None:
    with ExitStack() as stack:
        subject = Apart(stack, Sizes(4, 2, 8, 2, 3, "cpu"), 2, "fast K=2", 1)
        assert subject.seconds() > 0 and subject.seconds() > 0
        (process,) = subject._pool._processes.values()
        assert process.is_alive()
    assert not process.is_alive()


def test_the_peak_is_that_of_the_call() -> None:
    held = peak_bytes(lambda: torch.ones(1 << 24), torch.device("cpu"))  # 64 MiB
    assert held is None or 60 << 20 < held < 90 << 20
