"""Milliseconds of a CM-NTM training step by every backend, beside a cascade in the public style and the GEMM floor."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from manifests.schema import Training
from pipeline.bench._machine import machine
from pipeline.bench._memory import peak_bytes
from pipeline.bench._steps import flops_of_step, gemm_step, public_step, random_features, reference_step
from pipeline.training.backends.choice import able_backends, measured_step
from pipeline.training.data import SessionFeatures
from pipeline.training.models import MemoryModel, build_model
from pipeline.training.threads import candidates

STEPS = {"Shoes": 46, "FashionIQ": 114}  # steps an epoch at batch 80 (paper Table 1)
EPOCHS = 100
ENOUGH_SECONDS = 20.0  # a subject whose first step took this long is timed once more, not in every round


def run(
    stages: Sequence[int] = (1, 2, 4, 8, 16),
    batch: int = 80,
    turns: int = 4,
    dim: int = 768,
    slots: int = 4,
    hidden: int = 100,
    repeats: int = 5,
    runs: int = 5,
    public: bool = True,
    compiled: bool = False,
    threads: int = 0,
) -> dict[str, Any]:
    """Median of ``repeats`` full steps (forward, backward, Adam) of each subject, in turn in every round.

    Random unit features, float32. ``runs``: seeds side by side in the row "fast K=...", 0 for none. ``public``: the
    cascade in the public style; ``compiled``: the reference under torch.compile. ``threads``: CPU threads; 0 measures
    the fast path on each candidate and takes the best. The floor is the time that the matrix products of the
    reference's step would take at the speed of one large product, measured in the same rounds.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features = random_features(batch, turns, dim).to(device)
    shape = {"batch": batch, "turns": turns, "dim": dim, "width": dim, "slots": slots, "hidden": hidden}
    before, rows = torch.get_num_threads(), []
    training = Training(batch_size=batch)
    try:
        for c in stages:
            model = build_model("cm_ntm", {"stages": c, "slots": slots, "hidden": hidden}, dim).to(device)
            chosen = _threads(model, features, training, threads) if device.type == "cpu" else 0
            subjects = _subjects(model, features, training, runs, public, compiled)
            flops, rate = flops_of_step(model, features), gemm_step(batch * turns, dim, device)
            timed, floors = _rounds({**subjects, "gemm": rate.step}, repeats, device)
            floor = 1e3 * flops / (rate.flops / median(floors))
            for name, times in timed.items():
                rows.append({
                    "stages": c, "backend": name, "ms": 1e3 * median(times), "fastest_ms": 1e3 * min(times),
                    "floor_ms": floor, "gflop": flops / 1e9, "threads": chosen,
                    "peak_mb": peak_bytes(subjects[name], device), "parameters": sum(p.numel() for p in model.parameters()),
                })  # fmt: skip
            rows[-1]["turn_ms"] = _turn(model, features)
    finally:
        torch.set_num_threads(before)
    return {"machine": machine(), "device": str(device), "shape": shape, "runs": runs, "steps": rows}


def _subjects(
    model: MemoryModel, features: SessionFeatures, training: Training, runs: int, public: bool, compiled: bool
) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    if public:
        found["public style"] = public_step(model, features, training)
    found["reference"] = reference_step(model, features, training)
    if compiled:
        found["compiled"] = reference_step(model, features, training, compiled=True)
    able = able_backends([model], features, [training])
    for name in able:
        if name != "reference":
            found[name] = measured_step([model], features, [training], name)
    best = "graph" if "graph" in able else "fast"
    if runs:
        found[f"{best} K={runs}"] = measured_step([model] * runs, features, [training] * runs, best)
    return found


def _threads(model: MemoryModel, features: SessionFeatures, training: Training, asked: int) -> int:
    from pipeline.training.threads import choose_threads

    step = measured_step([model], features, [training], "fast")
    return choose_threads(step, among=(asked,) if asked else candidates()).threads


def _rounds(
    subjects: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each subject by round, and those of the matrix product.

    Each is run once untimed just before: a training step follows its like, not another subject that has used the caches.
    """
    first = {name: _seconds(step, device) for name, step in subjects.items()}  # warms up, compiles, captures
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(repeats):
        for name, step in subjects.items():
            if first[name] < ENOUGH_SECONDS:
                step()
                times[name].append(_seconds(step, device))
            elif number == 0:
                times[name].append(_seconds(step, device))
    return {name: found for name, found in times.items() if name != "gemm"}, times["gemm"]


def _seconds(step: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.no_grad()
def _turn(model: MemoryModel, features: SessionFeatures, repeats: int = 50) -> float:
    """Milliseconds of one turn of one running dialogue, the median."""
    model.eval()
    state, query, times = model.initial_state(1), features.queries[:1], []
    for _ in range(repeats):
        started = time.perf_counter()
        _, state = model.step(query, state)
        if query.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 1e3 * median(times)


def render(result: dict[str, Any]) -> str:
    """The figures as a table, with the time that 100 epochs of each dataset would take."""
    shape = ", ".join(f"{key} {value}" for key, value in result["shape"].items())
    columns = ["C", "backend", "ms/step", "x public", "x reference", "x GEMM floor", "peak MB"]
    columns += [f"{EPOCHS} epochs {name}" for name in STEPS]
    table, notes = [columns], []
    for row in result["steps"]:
        same = {r["backend"]: r["ms"] for r in result["steps"] if r["stages"] == row["stages"]}
        public = f"{same['public style'] / row['ms']:.1f}" if "public style" in same else ""
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb'] / 1e6:.0f}"
        cells = [str(row["stages"]), row["backend"], f"{row['ms']:.2f}", public, f"{same['reference'] / row['ms']:.2f}",
                 f"{row['ms'] / row['floor_ms']:.2f}", peak]  # fmt: skip
        table.append([*cells, *(_span(row["ms"] * EPOCHS * steps / 1e3) for steps in STEPS.values())])
        if "turn_ms" in row:
            threads = f", {row['threads']} CPU thread(s)" if row["threads"] else ""
            notes.append(f"C = {row['stages']}: {row['parameters']:,} parameters, {row['gflop']:.1f} GFLOP a step, GEMM floor "
                         f"{row['floor_ms']:.1f} ms{threads}; one turn of a dialogue {row['turn_ms']:.2f} ms")  # fmt: skip
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(w) if i == 1 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
             for line in table]  # fmt: skip
    about = f"{result['machine'].get('device', result['machine']['processor'])}, torch {result['machine']['torch']}"
    many = f"K={result['runs']}: milliseconds of one step of all {result['runs']} runs" if result["runs"] else ""
    return "\n".join([about, shape, *([many] if many else []), "", *lines, "", *notes])


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
