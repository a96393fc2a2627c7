"""The copy task: C = 1 learns to store random bits and to give them back (Graves et al. 2014, section 4.1).

The model is ``v_ntm`` as the registry builds it; only the task is new. Several seeds train side by side: each has its
own weights, data and clipping, and the memory functions see their sessions as one batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.determinism import derive_seed, flushed_denormals
from pipeline.training.models import build_model
from pipeline.training.models._ntm import HEADS, MemoryState, access, heads
from pipeline.training.models.cm_ntm import CMNTM

BITS = 8
WIDTH_IN = BITS + 1  # the last channel marks the end of the sequence
SOLVED = 0.1  # wrong bits a sequence, mean over an evaluation


class SideBySide(nn.Module):
    """S models of one stage and equal shape as one, with a leading axis for the models.

    Each computes what ``CMNTM.forward`` with C = 1 computes in training mode: ``heads`` and ``access`` are the same
    functions, on S B sessions at once; the layers are one batched product each.
    """

    def __init__(self, models: Sequence[CMNTM]):
        super().__init__()
        self.width = models[0].stages[0].width
        named = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in models]
        learned = dict(models[0].named_parameters())
        self.values = nn.ParameterDict({
            name.replace(".", "/"): nn.Parameter(torch.stack([own[name].detach() for own in named]), name in learned)
            for name in named[0]
        })  # fmt: skip

    def part(self, name: str) -> Tensor:
        """[S, ...], the values of one stage's parameter or buffer."""
        return self.values[f"stages/0/{name.replace('.', '/')}"]

    def forward(self, inputs: Tensor) -> Tensor:
        """[S, B, T, D] -> [S, B, T, D]."""
        models, batch = inputs.shape[:2]
        weight, width = self.part("controller.weight_ih"), self.width
        before, own = weight[..., :width], weight[..., -width:]
        recurrent = torch.cat([before + own, self.part("controller.weight_hh")], 2).transpose(1, 2)  # r^0(n) = r^1(n-1)
        bias = self.part("controller.bias_ih") + self.part("controller.bias_hh")
        driven = inputs.flatten(1, 2) @ weight[..., width:-width].transpose(1, 2) + bias[:, None]
        head_weight, head_bias = self.part("heads.weight").transpose(1, 2), self.part("heads.bias")[:, None]
        parts = (self.part(n) for n in ("memory", "read", "hidden", "cell"))
        starts = [p[:, None].expand(-1, batch, *p.shape[1:]).flatten(0, 1) for p in parts]
        stand = self.part("start").softmax(-1)[:, None].expand(-1, batch, -1, -1).flatten(0, 1)
        state, seen = MemoryState(*starts, stand), []
        for gates in driven.view(models, batch, -1, weight.shape[1]).unbind(2):
            last = torch.cat([state.read, state.hidden], 1).view(models, batch, -1)
            i, f, g, o = torch.baddbmm(gates, last, recurrent).flatten(0, 1).chunk(4, 1)
            cell = f.sigmoid() * state.cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            raw = hidden.view(models, batch, -1) @ head_weight + head_bias
            state = access(state, hidden, cell, heads(raw.flatten(0, 1), width))
            seen.append(torch.cat([hidden, state.read], 1).view(models, batch, -1))
        out = torch.cat(seen, 1) @ self.values["output/weight"].transpose(1, 2) + self.values["output/bias"][:, None]
        return out.view(models, len(seen), batch, -1).transpose(1, 2)


def sequences(generator: torch.Generator, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Input [B, 2 L + 1, 9] (L vectors of bits, the mark, L empty turns) and the bits [B, L, 8] that it asks for."""
    bits = torch.randint(0, 2, (batch, length, BITS), generator=generator).float()
    inputs = torch.zeros(batch, 2 * length + 1, WIDTH_IN)
    inputs[:, :length, :BITS], inputs[:, length, BITS] = bits, 1.0
    return inputs, bits


def answers(models: SideBySide, inputs: Tensor) -> Tensor:
    """Logits [S, B, L, 8] of the bits, from inputs [S, B, 2 L + 1, 9]."""
    return models(inputs)[:, :, inputs.shape[2] // 2 + 1 :, :BITS]


def clip_each(models: SideBySide, norm: float) -> None:
    """Scale each model's gradient down to ``norm``, whatever the others' are."""
    gradients = [p.grad for p in models.parameters() if p.grad is not None]
    total = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    scale = (norm / total.clamp_min(1e-12)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
