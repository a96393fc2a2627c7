"""Learned parts of the cascade: derived features, and the controller and heads of a stage (paper section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.training.errors import TrainingError
from pipeline.training.models._ntm import HEADS, READ, WRITE, MemoryState, access, head_sizes, heads

MEMORY_CONSTANT = 1e-6  # initial value of every memory element, as in the public NTM
SATURATED, STRENGTH = 4.0, 5.0  # biases of init="addressed": sigmoid(4) = 0.98
TRACKED_TURNS = 8  # turn positions with their own running statistics; later turns use those of the last position


class DerivedFeatures(nn.Module):
    """f_drv^c(n) = BatchNorm(FC_c(f_qry(n))) for the stages c < C, all FC_c in one product.

    Statistics are per turn: a training batch is normalized by its own mean and variance at each turn (over all
    sessions, including the repeated turns of short ones), and running statistics for inference are kept for each of
    the first ``TRACKED_TURNS`` positions. Positions beyond the longest training session use those of its last turn.
    Gain and bias of a stage are shared by all turns. FC_c has no bias, because the normalization would cancel it.
    """

    momentum, eps = 0.1, 1e-5

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.running_mean: Tensor
        self.running_var: Tensor
        self.count, self.dim = count, dim
        self.weight = nn.Parameter(torch.empty(count * dim, dim))
        self.gain = nn.Parameter(torch.ones(count * dim))
        self.bias = nn.Parameter(torch.zeros(count * dim))
        self.register_buffer("running_mean", torch.zeros(TRACKED_TURNS, count * dim))
        self.register_buffer("running_var", torch.ones(TRACKED_TURNS, count * dim))
        for stage in self.weight.data.split(dim):
            nn.init.xavier_uniform_(stage)

    def forward(self, queries: Tensor, first_turn: int | Tensor = 0) -> Tensor:
        """Compute the derived features: [B, T, D] -> [B, T, C-1, D].

        ``first_turn``: position of the first turn, from 0. Raises TrainingError for a training batch of one session.
        """
        batch, turns = queries.shape[:2]
        if self.training and batch < 2:
            raise TrainingError("a training batch of one session has no batch statistics; give at least two sessions")
        positions = (torch.arange(turns, device=queries.device) + first_turn).clamp_max(TRACKED_TURNS - 1)
        mean, var = self.running_mean[positions], self.running_var[positions]
        inputs, statistics = F.linear(queries, self.weight).flatten(1), (mean.view(-1), var.view(-1))
        gain, bias = self.gain.repeat(turns), self.bias.repeat(turns)
        out = F.batch_norm(inputs, *statistics, gain, bias, self.training, self.momentum, self.eps)
        if self.training:  # batch_norm has updated ``mean`` and ``var``, copies of [T, (C-1) D], in place
            with torch.no_grad():
                for kept, new in ((self.running_mean, mean), (self.running_var, var)):
                    kept[: len(new)] = new[:TRACKED_TURNS]
                    kept[len(new) :] = new[-1]
        return out.view(batch, turns, self.count, self.dim)


class Stage(nn.Module):
    """One controller with its read and write head and its initial state.

    Initial values follow the public NTM that the paper builds on: LSTM weights uniform within 5 / sqrt(inputs + hidden)
    and biases zero; heads Xavier-uniform with gain 1.4 and biases of standard deviation 0.01; learned initial hidden
    and cell state, read vector and head weights of standard deviation 0.05, 0.01 and 1e-5; memory constant 1e-6. All
    rows are then equal at first, content addressing cannot distinguish them, and its gradient is near zero until the
    learned head weights have diverged. Two starts are not in the paper. ``init="symmetry-breaking"`` learns the initial
    memory, from rows drawn uniformly within 1 / sqrt(N + M). ``init="addressed"`` also starts the heads in use, by the
    biases of their addressing: the write head moves on by one slot per turn and overwrites it, so that the memory is a
    list of the last N turns; the read head finds its slot by content, with strength 5.
    """

    def __init__(self, dim: int, slots: int, width: int, hidden: int, init: str):
        super().__init__()
        self.width = width
        self.controller = nn.LSTMCell(width + dim + width, hidden)
        self.heads = nn.Linear(hidden, HEADS * sum(head_sizes(width)) + 2 * width)
        self.hidden = nn.Parameter(torch.randn(hidden) * 0.05)
        self.cell = nn.Parameter(torch.randn(hidden) * 0.05)
        self.read = nn.Parameter(torch.randn(width) * 0.01)
        self.start = nn.Parameter(torch.randn(HEADS, slots) * 1e-5)  # logits of the heads' initial weights
        if init == "paper":
            self.register_buffer("memory", torch.full((slots, width), MEMORY_CONSTANT))
        else:
            bound = 1 / math.sqrt(slots + width)
            self.memory = nn.Parameter(torch.empty(slots, width).uniform_(-bound, bound))
        self._initialise()
        if init == "addressed":
            self._address()

    def _initialise(self) -> None:
        initialize_controller(self.controller, self.controller.input_size)
        # The public NTM has one layer per output, and Xavier's bound depends on a layer's number of outputs.
        for part in self.heads.weight.data.split([*head_sizes(self.width) * HEADS, self.width, self.width]):
            nn.init.xavier_uniform_(part, gain=1.4)
        nn.init.normal_(self.heads.bias, std=0.01)

    @torch.no_grad()
    def _address(self) -> None:
        biases = self.heads.bias[: HEADS * sum(head_sizes(self.width))].unflatten(0, (HEADS, -1))
        _, strength, gate, shift, sharpening = biases.split(head_sizes(self.width), dim=1)
        strength[READ] += STRENGTH
        gate += torch.tensor([[SATURATED], [-SATURATED]])  # the read head by content, the write head by location
        shift[READ, 1] += SATURATED  # stay
        shift[WRITE, 0] += SATURATED  # forward
        sharpening[WRITE] += SATURATED
        self.heads.bias[-2 * self.width : -self.width] += SATURATED  # erase what is overwritten
        self.start[WRITE, -1] += 2 * SATURATED  # the first turn is written to the first slot

    def initial_state(self, batch: int) -> MemoryState:
        """Return the state before the first turn, equal for all ``batch`` sessions."""
        parts = (self.memory, self.read, self.hidden, self.cell, self.start.softmax(-1))
        return MemoryState(*(part.expand(batch, *part.shape) for part in parts))

    def forward(self, read: Tensor, feature: Tensor, state: MemoryState) -> MemoryState:
        """Return the state after turn n from r^{c-1}(n) [B, M], f_drv^c(n) [B, D] and the state after turn n-1."""
        inputs = torch.cat([read, feature, state.read], dim=-1)
        hidden, cell = self.controller(inputs, (state.hidden, state.cell))
        return access(state, hidden, cell, heads(self.heads(hidden), self.width))


def initialize_controller(controller: nn.LSTMCell, inputs: int) -> None:
    """Draw the weights as for ``inputs`` input features, within 5 / sqrt(inputs + hidden), and zero the biases."""
    bound = 5 / math.sqrt(inputs + controller.hidden_size)
    for name, parameter in controller.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.uniform_(parameter, -bound, bound)
