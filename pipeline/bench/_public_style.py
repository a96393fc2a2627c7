"""The cascade in the style of public Neural Turing Machine code: module by module, cell by cell, sample by sample.

The baseline of ``bench train``. It computes the same function as ``CMNTM`` in training mode, from the same weights,
with the usual costs: a linear layer for each head parameter, an FC and a BatchNorm for each stage and turn, and a
circular shift that loops over the batch in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.errors import TrainingError
from pipeline.training.models._ntm import HEADS, SHIFTS, head_sizes
from pipeline.training.models.cm_ntm import CMNTM

EPSILON = 1e-16  # far below the initial memory's row norm of 2.8e-5
HEAD_PARTS = ("key", "strength", "gate", "shift", "sharpening")


class Head(nn.Module):
    """Addressing weights of one head, with a layer for each of its parameters."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        layers = [nn.Linear(hidden, size) for size in head_sizes(width)]
        self.key, self.strength, self.gate, self.shift, self.sharpening = layers

    def forward(self, hidden: Tensor, memory: Tensor, previous: Tensor) -> Tensor:
        """Map hidden [B, K], memory [B, N, M] and previous weights [B, N] to weights [B, N]."""
        key, strength = self.key(hidden), F.softplus(self.strength(hidden))
        gate, shift = torch.sigmoid(self.gate(hidden)), torch.softmax(self.shift(hidden), 1)
        sharpening = 1 + F.softplus(self.sharpening(hidden))
        similarity = F.cosine_similarity(memory + EPSILON, key.unsqueeze(1) + EPSILON, dim=2, eps=EPSILON)
        weights = gate * torch.softmax(strength * similarity, 1) + (1 - gate) * previous
        powered = self._shifted(weights, shift) ** sharpening
        return powered / (powered.sum(1, keepdim=True) + EPSILON)

    def _shifted(self, weights: Tensor, shift: Tensor) -> Tensor:
        """Return the circular convolution [B, N], [B, 3] -> [B, N], sample by sample."""
        shifted = torch.zeros_like(weights)
        for sample in range(len(weights)):
            around = torch.cat([weights[sample, -1:], weights[sample], weights[sample, :1]])
            shifted[sample] = F.conv1d(around.view(1, 1, -1), shift[sample].view(1, 1, SHIFTS)).view(-1)
        return shifted


class Cell(nn.Module):
    """One Neural Turing Machine: controller, heads, memory and the learned initial state of a session."""

    def __init__(self, dim: int, slots: int, width: int, hidden: int):
        super().__init__()
        self.controller = nn.LSTMCell(width + dim + width, hidden)
        self.read_head, self.write_head = Head(hidden, width), Head(hidden, width)
        self.erase, self.add = nn.Linear(hidden, width), nn.Linear(hidden, width)
        self.start_memory = nn.Parameter(torch.zeros(slots, width))
        self.start_read = nn.Parameter(torch.zeros(width))
        self.start_hidden, self.start_cell = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(hidden))
        self.start_weights = nn.Parameter(torch.zeros(HEADS, slots))

    def reset(self, batch: int) -> None:
        self.memory = self.start_memory.unsqueeze(0).repeat(batch, 1, 1)
        self.last_read = self.start_read.unsqueeze(0).repeat(batch, 1)
        self.hidden = self.start_hidden.unsqueeze(0).repeat(batch, 1)
        self.cell = self.start_cell.unsqueeze(0).repeat(batch, 1)
        self.read_weights, self.write_weights = torch.softmax(self.start_weights, 1).unsqueeze(1).repeat(1, batch, 1)

    def forward(self, before: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Compute one turn: r^{c-1}(n) [B, M], f_drv^c(n) [B, D] -> controller output [B, K], read vector [B, M]."""
        inputs = torch.cat([before, feature, self.last_read], 1)
        self.hidden, self.cell = self.controller(inputs, (self.hidden, self.cell))
        self.read_weights = self.read_head(self.hidden, self.memory, self.read_weights)
        self.write_weights = self.write_head(self.hidden, self.memory, self.write_weights)
        self.last_read = torch.bmm(self.read_weights.unsqueeze(1), self.memory).squeeze(1)
        erase, add = torch.sigmoid(self.erase(self.hidden)), self.add(self.hidden)
        erased = torch.bmm(self.write_weights.unsqueeze(2), erase.unsqueeze(1))
        added = torch.bmm(self.write_weights.unsqueeze(2), add.unsqueeze(1))
        self.memory = self.memory * (1 - erased) + added
        return self.hidden, self.last_read


class PublicStyleCascade(nn.Module):
    """C cells in a chain, in training mode; the same function of the same weights as ``CMNTM``."""

    cells: Any  # of ``Cell``
    norm: Any  # of layers

    def __init__(self, options: CMNTM.Options, dim: int):
        """Raise TrainingError for options that the public model lacks: dropout and residual."""
        super().__init__()
        if options.dropout or options.residual:
            raise TrainingError("the public style has neither dropout nor residual; leave both options out")
        width = options.width or dim
        self.cells = nn.ModuleList(Cell(dim, options.slots, width, options.hidden) for _ in range(options.stages))
        self.fc = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(options.stages - 1))
        self.norm = nn.ModuleList(nn.BatchNorm1d(dim) for _ in range(options.stages - 1))
        self.output = nn.Linear(options.hidden + width, dim)

    @classmethod
    def from_reference(cls, model: CMNTM) -> PublicStyleCascade:
        """Return a cascade with copies of ``model``'s weights, in its precision and on its device."""
        assert isinstance(model.options, CMNTM.Options)
        cascade = cls(model.options, model.dim).to(model.output.weight)
        cascade.load_state_dict(from_reference_weights(model.state_dict(), model.options, model.dim), strict=False)
        if model.options.init == "paper":  # constant, as in ``CMNTM``
            for cell in cascade.cells:
                cell.start_memory.requires_grad_(False)
        return cascade.train()

    def forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        """Map f_qry(1..T) [B, T, D] to f'_qry(1..T) [B, T, D]; each turn is normalized by its own batch statistics."""
        for cell in self.cells:
            cell.reset(len(queries))
        outputs = []
        for turn in range(queries.shape[1]):
            query, read = queries[:, turn], self.cells[-1].last_read
            for stage, cell in enumerate(self.cells):
                last = stage == len(self.cells) - 1
                feature = query if last else self.norm[stage](self.fc[stage](query))
                hidden, read = cell(read, feature)
            outputs.append(self.output(torch.cat([hidden, read], 1)))
        return torch.stack(outputs, 1)


def from_reference_weights(state: Mapping[str, Tensor], options: CMNTM.Options, dim: int) -> dict[str, Tensor]:
    """Return a ``CMNTM`` state_dict with the names of ``PublicStyleCascade``, one slice per separate layer.

    Running statistics are left out: the public BatchNorm has one set for all turns, and training does not read them.
    """
    width = options.width or dim
    found = {name: value for name, value in state.items() if name.startswith("output.")}
    for c in range(options.stages):
        own, to = f"stages.{c}.", f"cells.{c}."
        found |= {to + name.removeprefix(own): v for name, v in state.items() if name.startswith(own + "controller.")}
        for name in ("memory", "read", "hidden", "cell"):
            found[f"{to}start_{name}"] = state[own + name]
        found[to + "start_weights"] = state[own + "start"]
        layers = [f"{head}_head.{part}" for head in ("read", "write") for part in HEAD_PARTS] + ["erase", "add"]
        for kind in ("weight", "bias"):
            parts = state[f"{own}heads.{kind}"].split([*head_sizes(width) * HEADS, width, width])
            found |= {f"{to}{layer}.{kind}": part for layer, part in zip(layers, parts, strict=True)}
    for c in range(options.stages - 1):
        rows = slice(c * dim, (c + 1) * dim)
        found[f"fc.{c}.weight"] = state["derived.weight"][rows]
        found[f"norm.{c}.weight"], found[f"norm.{c}.bias"] = state["derived.gain"][rows], state["derived.bias"][rows]
    return found
