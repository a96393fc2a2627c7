"""Milliseconds of a training step of the LSTM and the reference CM-NTM, beside what the machine's GEMM allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from manifests.schema import Session, Training, Turn
from pipeline.bench._machine import machine
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import flushed_denormals
from pipeline.training.fit import measured_step
from pipeline.training.losses import turnwise_cross_entropy
from pipeline.training.models import MemoryModel, build_model
from pipeline.training.threads import choose_threads

STEPS = {"Shoes": 46, "FashionIQ": 114}  # steps an epoch at batch 80 (paper Table 1)
EPOCHS = 100


def run(
    stages: Sequence[int] = (1, 2, 4, 8),
    batch: int = 80,
    turns: int = 4,
    dim: int = 768,
    slots: int = 4,
    hidden: int = 100,
    repeats: int = 5,
) -> dict[str, Any]:
    """Best of ``repeats`` full steps (forward, backward, Adam) on random unit features, on the best number of threads.

    ``floor_ms`` is the time that the step's matrix products alone would take at the speed of one large product.
    """
    features = _random_features(batch, turns, dim)
    shape = {"slots": slots, "hidden": hidden}
    subjects = [("lstm", {"hidden": hidden})] + [("cm_ntm", {"stages": c, **shape}) for c in stages]
    rows = []
    before = torch.get_num_threads()
    try:
        rates = {}
        for name, options in subjects:
            model = build_model(name, options, dim)
            choice = choose_threads(measured_step(model, features, Training(batch_size=batch)), repeats=repeats)
            if choice.threads not in rates:
                rates[choice.threads] = _gemm_rate(batch * turns, dim, repeats)
            times = choice.milliseconds or {choice.threads: _milliseconds(model, features, batch, repeats)}
            flops = _flops(model, features)
            rows.append({
                "model": name, "stages": options.get("stages", 0), "parameters": sum(p.numel() for p in model.parameters()),
                "gflop": flops / 1e9, "ms": times[choice.threads], "floor_ms": flops / rates[choice.threads] * 1e3,
                "threads": choice.threads, "ms_by_threads": {str(n): ms for n, ms in times.items()},
            })  # fmt: skip
    finally:
        torch.set_num_threads(before)
    return {
        "machine": machine(),
        "shape": {"batch": batch, "turns": turns, "dim": dim, "width": dim, **shape},
        "gemm_gflops": {str(n): rate / 1e9 for n, rate in rates.items()},
        "steps": rows,
    }


def render(result: dict[str, Any]) -> str:
    """The figures as a table, with the time that 100 epochs of each dataset would take."""
    shape = ", ".join(f"{key} {value}" for key, value in result["shape"].items())
    rates = ", ".join(f"{rate:.0f} GFLOP/s on {n} thread(s)" for n, rate in result["gemm_gflops"].items())
    lines = [f"{result['machine']['processor']}, torch {result['machine']['torch']}", shape, f"GEMM: {rates}", ""]
    columns = ["model", "parameters", "GFLOP", "ms/step", "GEMM floor", "x floor", "threads"]
    columns += [f"{EPOCHS} epochs {name}" for name in STEPS]
    table = [columns]
    for row in result["steps"]:
        name = row["model"] + (f" C={row['stages']}" if row["stages"] else "")
        cells = [name, f"{row['parameters']:,}", f"{row['gflop']:.2f}", f"{row['ms']:.1f}", f"{row['floor_ms']:.1f} ms"]
        cells += [f"{row['ms'] / row['floor_ms']:.1f}", str(row["threads"])]
        cells += [f"{row['ms'] * EPOCHS * steps / 60e3:.1f} min" for steps in STEPS.values()]
        table.append(cells)
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    lines += ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
              for line in table]  # fmt: skip
    return "\n".join(lines)


def _random_features(batch: int, turns: int, dim: int) -> SessionFeatures:
    """One batch of sessions of ``turns`` turns, each with unit rows of its own."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(batch * turns).view(batch, turns)
    session = Session(
        id="bench", category="bench", split="train", turns=(Turn(reference="a", captions=("b",)),), target="c"
    )
    queries, targets = (
        torch.nn.functional.normalize(torch.randn(batch * turns, dim, generator=generator), dim=-1) for _ in range(2)
    )
    return SessionFeatures(queries, targets, rows, rows, rows[:, 0], torch.full((batch,), turns), (session,) * batch)


def _milliseconds(model: MemoryModel, features: SessionFeatures, batch: int, repeats: int) -> float:
    return _best(measured_step(model, features, Training(batch_size=batch)), repeats) * 1e3


def _gemm_rate(rows: int, dim: int, repeats: int) -> float:
    """Floating-point operations a second of one product [rows, dim] x [dim, 3 dim] on the present threads."""
    left, right = torch.ones(rows, dim), torch.ones(dim, 3 * dim)
    with flushed_denormals():
        return 2 * rows * dim * 3 * dim / _best(lambda: left @ right, 4 * repeats)


def _best(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _flops(model: MemoryModel, features: SessionFeatures) -> float:
    """Floating-point operations of the matrix products of one step, forward and backward."""
    queries, targets, lengths = features.batch(torch.arange(len(features)))
    with FlopCounterMode(display=False) as counter:
        turnwise_cross_entropy(model(queries, lengths), targets).backward()
    total = float(counter.get_total_flops())
    for layer in model.modules():
        if isinstance(layer, torch.nn.LSTM):  # a fused layer that the counter does not see into
            inputs, hidden = layer.weight_ih_l0.numel(), layer.weight_hh_l0.numel()
            total += 2 * queries.shape[0] * queries.shape[1] * (2 * inputs + 3 * hidden)  # no gradient of the queries
    return total
