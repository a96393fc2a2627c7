"""Milliseconds of a CM-NTM training step by every backend, with a public-style cascade and the GEMM lower bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any, get_args

import torch

from manifests.errors import ManifestError, Problem
from manifests.schema import Training
from pipeline.bench._machine import machine
from pipeline.bench._subjects import Apart, Here, Sizes, flops_of_step, gemm_step, rounding
from pipeline.core.device import cpu_threads, seconds_of, training_threads
from pipeline.core.text_table import aligned
from pipeline.training.backends.choice import able_backends
from pipeline.training.data import SessionFeatures
from pipeline.training.models import MemoryModel

STEPS = {"Shoes": 46, "FashionIQ": 114}  # steps per epoch at batch size 80 (paper Table 1)
EPOCHS = 100
ENOUGH_SECONDS = 20.0  # a subject whose step takes this long is timed once, not in every round


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
    matmul: str = "highest",
    apart: bool = True,
    progress: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Return the median of ``repeats`` full steps (forward, backward, Adam) of each subject, interleaved by round.

    Random unit features, float32. ``runs``: seeds side by side in the row "fast K=...", 0 for none. ``public``: the
    public-style cascade; ``compiled``: the reference under torch.compile. ``threads``: CPU threads; 0: as `train`. The
    lower bound is the time for the matrix products of the reference's step at the speed of one large product, measured
    in the same rounds. ``matmul``: "high" or "medium" (``training.matmul``) also times the last backend with its
    products rounded this way, and reports the deviation; ManifestError for another one. ``apart``: run each subject in
    a separate process, like a training, so that subjects do not share memory and caches. "operations" are those that a
    step dispatches to the device, views not counted.
    """
    known = get_args(Training.model_fields["matmul"].annotation)
    if matmul not in known:
        raise ManifestError([Problem("--set", f"matmul={matmul}", f"choose one of {', '.join(known)}")])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = Sizes(batch, turns, dim, slots, hidden, str(device))
    rows: list[dict[str, Any]] = []
    chosen = training_threads(threads or None)
    with cpu_threads(chosen):
        for c in stages:
            progress(f"C = {c}")
            model, features, training = sizes.build(c)
            names = _names(able_backends([model], features, [training]), runs, public, compiled, matmul)
            product, operations = gemm_step(batch * turns, dim, device)
            with ExitStack() as stack:
                subjects: dict[str, Here] = {"gemm": Here(product, device)}
                for name in names:
                    subjects[name] = Apart(stack, sizes, c, name, chosen) if apart else Here.of(sizes, c, name)
                first, timed = _rounds(subjects, repeats)
                peaks = {name: subjects[name].peak() for name in names}
                counted = [name for name in names if name != "compiled"]  # it would recompile
                counts = {name: subjects[name].operations() for name in counted}
            flops = flops_of_step(model, features)
            floor = 1e3 * flops / (operations / median(timed.pop("gemm")))
            size = sum(p.numel() for p in model.parameters())
            about = {"gflop": flops / 1e9, "threads": chosen if device.type == "cpu" else 0, "parameters": size}
            for name, times in timed.items():
                row = {"stages": c, "backend": name, "ms": 1e3 * median(times), "fastest_ms": 1e3 * min(times)}
                row |= {"first_s": first[name], "floor_ms": floor, **about}
                rows.append(row | {"peak_mb": peaks[name], "operations": counts.get(name)})
            rows[-1]["turn_ms"] = _turn(model, features)
            if matmul != "highest":
                rows[-1]["rounding"] = rounding(model, features, matmul)
    shape = {"batch": batch, "turns": turns, "dim": dim, "width": dim, "slots": slots, "hidden": hidden}
    return {"machine": machine(), "device": str(device), "shape": shape, "runs": runs, "matmul": matmul, "steps": rows}


def _names(able: Sequence[str], runs: int, public: bool, compiled: bool, matmul: str) -> list[str]:
    """Return the names of the timed subjects, in order, as ``Sizes.step`` accepts them. ``able``: backends."""
    found = (["public style"] if public else []) + ["reference"] + (["compiled"] if compiled else [])
    found += [name for name in able if name != "reference"]
    found += [f"{found[-1]} {matmul}"] if matmul != "highest" else []
    return found + ([f"{'graph' if 'graph' in able else 'fast'} K={runs}"] if runs else [])


def _rounds(subjects: dict[str, Here], repeats: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return seconds of each subject's first step, with compilation or capture if any, and seconds by round.

    Each subject runs once untimed just before, since in a training a step follows its own kind, with its caches.
    """
    first = {name: subject.seconds() for name, subject in subjects.items()}
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, subject in subjects.items():
            if not times[name] or max(times[name]) < ENOUGH_SECONDS:
                subject.seconds()
                times[name].append(subject.seconds())
    return first, times


@torch.no_grad()
def _turn(model: MemoryModel, features: SessionFeatures, repeats: int = 50) -> float:
    """Return the median milliseconds of one turn of one running dialogue."""
    model.eval()
    state, query = model.initial_state(1), features.queries[:1]

    def step() -> None:
        nonlocal state
        _, state = model.step(query, state)

    return 1e3 * median(seconds_of(step, query.device) for _ in range(repeats))


def render(result: dict[str, Any]) -> str:
    shape = ", ".join(f"{key} {value}" for key, value in result["shape"].items())
    columns = ["C", "backend", "ms/step", "x public", "x reference", "x GEMM floor", "peak MB", "operations"]
    columns += [f"{EPOCHS} epochs {name}" for name in STEPS]
    table, notes = [columns], []
    for row in result["steps"]:
        same = {r["backend"]: r["ms"] for r in result["steps"] if r["stages"] == row["stages"]}
        public = f"{same['public style'] / row['ms']:.1f}" if "public style" in same else ""
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb'] / 1e6:.0f}"
        count = "" if row["operations"] is None else f"{row['operations']:,}"
        against = f"{same['reference'] / row['ms']:.2f}", f"{row['ms'] / row['floor_ms']:.2f}"
        spans = (_span(row["ms"] * EPOCHS * steps / 1e3) for steps in STEPS.values())
        times = f"{row['ms']:.2f}", public, *against
        table.append([str(row["stages"]), row["backend"], *times, peak, count, *spans])
        if row["backend"] == "compiled":
            what = "the compiled reference's first step, compilation included"
            notes.append(f"C = {row['stages']}: {what}: {row['first_s']:.1f} s")
        if "turn_ms" in row:
            threads = f", {row['threads']} CPU thread(s)" if row["threads"] else ""
            sizes = f"{row['parameters']:,} parameters, {row['gflop']:.1f} GFLOP a step"
            floor = f"GEMM floor {row['floor_ms']:.1f} ms{threads}; one turn of a dialogue {row['turn_ms']:.2f} ms"
            notes.append(f"C = {row['stages']}: {sizes}, {floor}")
        if "rounding" in row:
            outputs, gradient = (f"{share:.2%}" for share in row["rounding"])
            what = f"{result['matmul']} products change f' by {outputs} and the gradient by {gradient} of their norms"
            notes.append(f"C = {row['stages']}: {what}")
    lines = aligned(table, left=2)
    about = f"{result['machine'].get('device', result['machine']['processor'])}, torch {result['machine']['torch']}"
    many = f"K={result['runs']}: milliseconds of one step of all {result['runs']} runs" if result["runs"] else ""
    return "\n".join([about, shape, *([many] if many else []), "", *lines, "", *notes])


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
