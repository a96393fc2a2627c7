"""Copy task: a C = 1 model learns to store and reproduce random bits (Graves et al. 2014, section 4.1).

The model is ``v_ntm`` as the registry builds it. Several seeds train side by side as one ``FastCascade``: each has its
own weights, bits and clipping. They share the lengths.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.device import cpu_threads
from pipeline.training.cascade.stacked import FastCascade
from pipeline.training.determinism import derive_seed, flushed_denormals
from pipeline.training.models import build_model

BITS = 8
WIDTH_IN = BITS + 1  # the last channel marks the end of the sequence
SOLVED = 0.1  # wrong bits per sequence
WINDOW = 50  # iterations averaged per point of the curve
LONGER = (2, 3, 5)  # also tested: multiples of the longest trained length


def sequences(generator: torch.Generator, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Return inputs [B, 2 L + 1, 9] (L bit vectors, the end mark, L empty turns) and the target bits [B, L, 8]."""
    bits = torch.randint(0, 2, (batch, length, BITS), generator=generator).float()
    inputs = torch.zeros(batch, 2 * length + 1, WIDTH_IN)
    inputs[:, :length, :BITS], inputs[:, length, BITS] = bits, 1.0
    return inputs, bits


def answers(models: FastCascade, inputs: Tensor) -> Tensor:
    """Return logits [S, B, L, 8] of the bits, from inputs [S, B, 2 L + 1, 9]."""
    return models(inputs)[:, :, inputs.shape[2] // 2 + 1 :, :BITS]


def clip_each(models: FastCascade, norm: float) -> None:
    """Clip each model's gradient to ``norm``, independently of the others."""
    gradients = [p.grad for p in models.parameters() if p.grad is not None]
    total = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    scale = (norm / total.clamp_min(1e-12)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


def wrong_bits(logits: Tensor, bits: Tensor) -> Tensor:
    """Return wrong bits per sequence of each model, [S, B, L, 8] and [S, B, L, 8] -> [S]."""
    return ((logits > 0) != (bits > 0.5)).sum((2, 3)).float().mean(1)


class Trainer:
    """Train S models on the copy task, step by step, on the CPU."""

    def __init__(self, seeds: Sequence[int], options: dict[str, Any], batch: int, rates: Sequence[float], clip: float):
        """Build the models. ``rates``: learning rates of the heads' initial weights, and of all other parameters."""
        self.seeds, self.batch, self.clip = tuple(seeds), batch, clip
        built: list[Any] = [build_model("v_ntm", options, WIDTH_IN, seed) for seed in seeds]
        self.models = FastCascade(built).train()
        others = [p for name, p in self.models.named_parameters() if name != "start"]
        self.optimizer = torch.optim.Adam(
            [{"params": others, "lr": rates[1]}, {"params": [self.models.start], "lr": rates[0]}],
            betas=(0.9, 0.98),
        )
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.bits = [torch.Generator().manual_seed(derive_seed(seed, "copy", "bits")) for seed in seeds]

    def rate(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def sequences(self, length: int, batch: int) -> tuple[Tensor, Tensor]:
        """Return new sequences, different for each seed: [S, B, 2 L + 1, 9] and [S, B, L, 8]."""
        inputs, bits = zip(*(sequences(generator, batch, length) for generator in self.bits), strict=True)
        return torch.stack(inputs), torch.stack(bits)

    def step(self, length: int) -> tuple[Tensor, Tensor]:
        """Run one iteration on sequences of one length; return wrong bits and loss in bits, both per sequence [S]."""
        inputs, bits = self.sequences(length, self.batch)
        logits = answers(self.models, inputs)
        losses = F.binary_cross_entropy_with_logits(logits, bits, reduction="none").mean((1, 2, 3))
        self.optimizer.zero_grad()
        losses.sum().backward()
        clip_each(self.models, self.clip)
        self.optimizer.step()
        return wrong_bits(logits.detach(), bits), losses.detach() * (BITS * length / math.log(2))

    @torch.no_grad()
    def test(self, lengths: Sequence[int], batch: int) -> list[list[float]]:
        """Return wrong bits per sequence on new sequences: [S][lengths]."""
        drawn = (self.sequences(length, batch) for length in lengths)
        return torch.stack([wrong_bits(answers(self.models, inputs), bits) for inputs, bits in drawn], 1).tolist()


def run(
    seeds: Sequence[int] = (0, 1, 2, 3),
    iterations: int = 50_000,
    slots: int = 128,
    width: int = 20,
    hidden: int = 100,
    shortest: int = 1,
    longest: int = 20,
    batch: int = 4,
    learning_rate: float = 3e-3,
    start_rate: float = 3e-2,
    clip: float = 1.0,
    half_life: int = 3_000,
    init: str = "paper",
    plot: str = "",
    progress: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Train until every seed is solved, or for ``iterations``, each on ``batch`` sequences of one random length.

    A seed is solved once it makes fewer than ``SOLVED`` wrong bits per sequence over ``WINDOW`` iterations of training
    and on new sequences of every trained length. Longer sequences are tested at that point, and training continues
    with the other seeds. Both learning rates halve every ``half_life`` iterations. ``start_rate`` is the learning rate
    of the heads' initial weights: these break the symmetry of equal rows, and as logits of deviation 1e-5 they have to
    change a lot. ``plot``: a file for the curve.
    """
    options = {"slots": slots, "width": width, "hidden": hidden, "init": init}
    trainer = Trainer(seeds, options, batch, (start_rate, learning_rate), clip)
    lengths = torch.Generator().manual_seed(derive_seed(0, "copy", "lengths"))
    curve: list[dict[str, Any]] = []
    solved: dict[int, dict[str, Any]] = {}
    window: list[tuple[Tensor, Tensor]] = []
    began = time.perf_counter()
    with cpu_threads(1), flushed_denormals():  # hundreds of small operations per step
        for iteration in range(1, iterations + 1):
            trainer.rate(0.5 ** (iteration / half_life))
            window.append(trainer.step(int(torch.randint(shortest, longest + 1, (), generator=lengths))))
            if len(window) == WINDOW or iteration == iterations:
                wrong, loss = (torch.stack(values).mean(0).tolist() for values in zip(*window, strict=True))
                window.clear()
                seconds = time.perf_counter() - began
                curve.append({"iteration": iteration, "wrong_bits": wrong, "loss_bits": loss, "seconds": seconds})
                _judge(trainer, wrong, iteration, range(shortest, longest + 1), solved)
                shown = " ".join(f"{value:.2f}" for value in wrong)
                progress(f"iteration {iteration}: wrong bits a sequence {shown}; {len(solved)} solved; {seconds:.0f} s")
                if len(solved) == len(trainer.seeds):
                    break
    task = {"bits": BITS, "lengths": [shortest, longest], "iterations": iterations, "batch": batch}
    adam = {"name": "Adam", "betas": [0.9, 0.98], "learning_rate": learning_rate, "start_rate": start_rate}
    result: dict[str, Any] = {"task": task, "model": {"name": "v_ntm", **options}}
    result |= {"optimizer": {**adam, "half_life": half_life, "clip": clip}, "seeds": list(seeds), "curve": curve}
    result["solved"] = {str(seed): found for seed, found in solved.items()}
    if plot:
        draw(result, Path(plot))
    return result


def _judge(
    trainer: Trainer, wrong: Sequence[float], iteration: int, lengths: range, solved: dict[int, dict[str, Any]]
) -> None:
    """Test the seeds whose window has just come below the threshold; enter those that pass in ``solved``."""
    waiting = [i for i, seed in enumerate(trainer.seeds) if seed not in solved and wrong[i] < SOLVED]
    if not waiting:
        return
    trained = trainer.test(lengths, batch=16)
    longer = [lengths[-1] * factor for factor in LONGER]
    beyond: list[list[float]] | None = None
    for i in waiting:
        mean = sum(trained[i]) / len(trained[i])
        if mean < SOLVED:
            beyond = beyond or trainer.test(longer, batch=16)
            when = {"iteration": iteration, "sequences": iteration * trainer.batch}
            wrong_bits = {"trained_lengths": mean, "longest": trained[i][-1]}
            longer_ones = dict(zip(map(str, longer), beyond[i], strict=True))
            solved[trainer.seeds[i]] = {**when, **wrong_bits, "beyond": longer_ones}


def render(result: dict[str, Any]) -> str:
    task, seeds = result["task"], result["seeds"]
    rate = result["optimizer"]
    lines = [
        f"{BITS}-bit vectors, {task['lengths'][0]} to {task['lengths'][1]} of them, {task['batch']} sequences an iteration",
        ", ".join(f"{key} {value}" for key, value in result["model"].items())
        + f"; {rate['name']} {rate['learning_rate']:g}, initial head weights {rate['start_rate']:g}, "
        f"halved every {rate['half_life']} iterations, clip {rate['clip']:g}",
        "",
        "wrong bits a sequence (mean of the last iterations)",
        "iteration  " + "  ".join(f"seed {seed}".rjust(7) for seed in seeds),
    ]
    curve = result["curve"]
    step = max(1, math.ceil(len(curve) / 15))
    shown = curve[step - 1 :: step]
    for point in shown if shown and shown[-1] is curve[-1] else [*shown, *curve[-1:]]:
        lines.append(f"{point['iteration']:9}  " + "  ".join(f"{value:7.2f}" for value in point["wrong_bits"]))
    lines.append("")
    for seed in seeds:
        if (found := result["solved"].get(str(seed))) is None:
            lines.append(f"seed {seed}: not below {SOLVED} after {curve[-1]['iteration'] if curve else 0} iterations")
            continue
        beyond = ", ".join(f"length {length}: {wrong:.2f}" for length, wrong in found["beyond"].items())
        lines.append(
            f"seed {seed}: below {SOLVED} at iteration {found['iteration']} ({found['sequences']} sequences); fresh "
            f"sequences: trained lengths {found['trained_lengths']:.3f}, length {task['lengths'][1]}: "
            f"{found['longest']:.3f}; never trained on, {beyond}"
        )
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    from pipeline.analysis.drawing import new_figure, save_figure

    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    points = [point["iteration"] for point in result["curve"]]
    for index, seed in enumerate(result["seeds"]):
        values = [max(point["wrong_bits"][index], 1e-2) for point in result["curve"]]  # a log axis has no zero
        axes.plot(points, values, lw=1.2, label=f"seed {seed}")
    axes.axhline(SOLVED, color="0.5", lw=0.8, ls="--", label=f"{SOLVED} (solved)")
    axes.set(yscale="log", xlabel="iteration", ylabel="wrong bits a sequence", title="Copy task, C = 1", xlim=(0, None))
    axes.legend(frameon=False)
    save_figure(figure, [path])
