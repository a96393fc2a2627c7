"""Recurrent and attention layers as plain products with torch's parameter names; vmap cannot batch torch's layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.training.models.base import dropout


def lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states (h, c) [B, H] from the gates [B, 4 H], in torch's order, and the previous cell [B, H]."""
    enter, forget, new, leave = gates.chunk(4, -1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def gru_cell(given: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
    """Return the state [B, H] from the gates of input and state [B, 3 H], in torch's order, and the previous state."""
    (reset, update, new), (old_reset, old_update, old) = given.chunk(3, -1), kept.chunk(3, -1)
    new = (new + (reset + old_reset).sigmoid() * old).tanh()
    share = (update + old_update).sigmoid()
    return share * hidden + (1 - share) * new


class _Plain(nn.Module):
    """Module with the parameters of a torch layer, by their names."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, layer: nn.Module):
        super().__init__()
        for name, parameter in layer.named_parameters():
            setattr(self, name, parameter)


class PlainLayer(_Plain):
    """One layer of an LSTM or a GRU, batch first: [B, T, D] -> [B, T, H] and None."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        given, states = F.linear(inputs, self.weight_ih_l0, self.bias_ih_l0), []
        hidden = cell = given.new_zeros(len(inputs), self.weight_hh_l0.shape[1])
        for turn in given.unbind(1):
            kept = F.linear(hidden, self.weight_hh_l0, self.bias_hh_l0)
            if len(self.weight_hh_l0) == 4 * hidden.shape[1]:
                hidden, cell = lstm_cell(turn + kept, cell)
            else:
                hidden = gru_cell(turn, kept, hidden)
            states.append(hidden)
        return torch.stack(states, 1), None


class PlainLSTMCell(_Plain):
    """[B, D] and (h, c) -> (h, c), each [B, H]."""

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        given = F.linear(inputs, self.weight_ih, self.bias_ih)
        return lstm_cell(given + F.linear(state[0], self.weight_hh, self.bias_hh), state[1])


class PlainEncoder(nn.Module):
    """Pre-norm encoder layers with GELU, batch first; ``mask`` [T, T] is True for masked turns (``is_causal`` is a hint)."""

    def __init__(self, encoder: Any):  # nn.TransformerEncoder
        super().__init__()
        self.layers = encoder.layers
        self.norm = encoder.norm

    def forward(self, tokens: Tensor, mask: Tensor, is_causal: bool) -> Tensor:
        for layer in self.layers:
            attended = _attention(layer.self_attn, layer.norm1(tokens), mask).transpose(0, 1)
            # torch's layer stores this output turn-major, so its dropout is drawn in that order.
            tokens = tokens + dropout(attended, layer.dropout1.p, self.training).transpose(0, 1)
            inner = dropout(F.gelu(layer.linear1(layer.norm2(tokens))), layer.dropout.p, self.training)
            tokens = tokens + dropout(layer.linear2(inner), layer.dropout2.p, self.training)
        return self.norm(tokens)


def _attention(layer: nn.MultiheadAttention, tokens: Tensor, mask: Tensor) -> Tensor:
    """Compute self-attention of tokens [B, T, W] without the masked turns."""
    heads = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias).unflatten(-1, (3, layer.num_heads, -1))
    query, key, value = (part.transpose(1, 2) for part in heads.unbind(2))  # [B, H, T, W / H]
    scores = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(mask, -torch.inf)
    seen = dropout(scores.softmax(-1), layer.dropout, layer.training)
    return layer.out_proj((seen @ value).transpose(1, 2).flatten(2))


PLAIN = {nn.LSTM: PlainLayer, nn.GRU: PlainLayer, nn.LSTMCell: PlainLSTMCell, nn.TransformerEncoder: PlainEncoder}


def plain(module: nn.Module) -> nn.Module:
    """Replace the layers of the types in ``PLAIN`` in place and return ``module``; parameters keep names and values."""
    for name, child in module.named_children():
        kind = PLAIN.get(type(child))
        setattr(module, name, plain(child) if kind is None else kind(child))
    return module
