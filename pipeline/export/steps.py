"""Memory models and composers as modules with tensors in and out, whole sessions and single turns, and example inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.composition.composers.base import Composer
from pipeline.training.backends._plain import gru_cell, lstm_cell
from pipeline.training.models._ntm import MemoryState
from pipeline.training.models._residual import Residual
from pipeline.training.models.avg import Average
from pipeline.training.models.base import MemoryModel
from pipeline.training.models.cm_ntm import CMNTM, CascadeState
from pipeline.training.models.dialog_manager import DialogManager
from pipeline.training.models.ewma import EWMA
from pipeline.training.models.gru import GRU
from pipeline.training.models.last import LastTurn
from pipeline.training.models.lstm import LSTM
from pipeline.training.models.no_memory import NoMemory
from pipeline.training.models.turn_weights import TurnWeights

EXAMPLES = 3  # batch size of the example inputs; 0 and 1 would become constants of the graph
ABOUT = "one turn: f_qry(n), the number of earlier turns, the state -> f'_qry(n), the next state"


class Graph(NamedTuple):
    """A module to export. inputs: name -> example, whose first axis is the batch, except for a scalar; outputs: names."""

    name: str
    about: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class CascadeStep(nn.Module):
    """One turn of the CM-NTM with the number of earlier turns as a tensor. Equals ``CMNTM.step``."""

    def __init__(self, model: CMNTM):
        super().__init__()
        self.model = model

    def forward(self, query: Tensor, turn: Tensor, average: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """query [B, D], turn int64 [], average [B, D], and memory, read, hidden, cell, weights of each stage."""
        size = len(MemoryState._fields)
        stages = tuple(MemoryState(*state[n : n + size]) for n in range(0, len(state), size))
        output, after = self.model.step(query, CascadeState(turn, stages, average))
        return output, after.average.clone(), *(part for stage in after.stages for part in stage)


class AverageStep(nn.Module):
    """One turn of the mean of all turns, or of EWMA: query [B, D], turn int64 [], sum or average [B, D]."""

    def __init__(self, model: MemoryModel):
        super().__init__()
        self.model, self.state = model, type(model.initial_state(1))

    def forward(self, query: Tensor, turn: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output, after = self.model.step(query, self.state(turn, state))
        return output.clone(), after[1]


class RecurrentStep(nn.Module):
    """One turn of an LSTM or a GRU: query [B, D + E], turn int64 [], average [B, D], hidden [B, H] (and cell [B, H])."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor

    def __init__(
        self, dim: int, cell: nn.Module, output: nn.Linear, residual: Residual, first: nn.Module | None = None
    ):
        super().__init__()
        self.dim, self.first, self.output, self.residual = dim, first, output, residual
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        layer = "_l0" if isinstance(cell, nn.RNNBase) else ""
        for name in names:
            self.register_buffer(name, getattr(cell, name + layer).detach())

    def forward(self, query: Tensor, turn: Tensor, average: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        read = query if self.first is None else self.first(query)
        given = F.linear(read, self.weight_ih, self.bias_ih)
        kept = F.linear(state[0], self.weight_hh, self.bias_hh)
        state = lstm_cell(given + kept, state[1]) if len(state) == 2 else (gru_cell(given, kept, state[0]),)
        output, average = self.residual.step(query[:, : self.dim], average, turn, self.output(state[0]))
        return output, average.clone(), *state


class WeightedStep(nn.Module):
    """One turn of the turn weights: query [B, D + E], turn int64 [], window [B, turns, D + E], the newest turn first."""

    def __init__(self, model: TurnWeights):
        super().__init__()
        self.model = model

    def forward(self, query: Tensor, turn: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        window = torch.cat([query[:, None], window[:, :-1]], 1)
        features = window[:, None].unflatten(-1, (model.kinds, model.dim))
        place = turn.clamp(max=model.options.turns - 1).reshape(1)
        return model.weighted(features, place)[:, 0], window


class Same(nn.Module):
    """The last turn alone: query [B, D] -> [B, D]."""

    def forward(self, query: Tensor) -> Tensor:
        return query.clone()


def step_of(model: MemoryModel) -> Graph | str:
    """Return the graph of one turn, or the reason why this model has none."""
    query, turn = torch.randn(EXAMPLES, model.dim + model.texts), torch.tensor(0)
    average = query.new_zeros(EXAMPLES, model.dim)

    def graph(module: nn.Module, **state: Tensor) -> Graph:
        names = {name.replace("__", "."): value for name, value in state.items()}
        given = {"query": query, "turn": turn, **names}
        return Graph("step", ABOUT, module, given, ("output", *(f"next.{name}" for name in names)))

    def recurrent(cell: nn.Module, residual: Residual, first: nn.Module | None = None, /, **state: Tensor) -> Graph:
        return graph(RecurrentStep(model.dim, cell, model.output, residual, first), average=average, **state)

    def zeros(size: int) -> Tensor:
        return query.new_zeros(EXAMPLES, size)

    if isinstance(model, CMNTM):
        stages = model.initial_state(EXAMPLES).stages
        parts = {f"stage{n}__{k}": v.clone() for n, s in enumerate(stages, start=1) for k, v in s._asdict().items()}
        return graph(CascadeStep(model), average=average, **parts)
    if isinstance(model, Average):
        return graph(AverageStep(model), total=average)
    if isinstance(model, EWMA):
        return graph(AverageStep(model), average=average)
    if isinstance(model, LastTurn):
        return Graph("step", "one turn: f_qry(n) -> f'_qry(n)", Same(), {"query": query}, ("output",))
    if isinstance(model, LSTM):
        size = model.options.hidden
        return recurrent(model.lstm, model.residual, hidden=zeros(size), cell=zeros(size))
    if isinstance(model, NoMemory):
        first = {name: getattr(model, name).detach().expand(EXAMPLES, -1).clone() for name in ("hidden", "cell")}
        return recurrent(model.controller, model.residual, **first)
    if isinstance(model, GRU):
        return recurrent(model.gru, model.residual, hidden=zeros(model.options.hidden))
    if isinstance(model, DialogManager):
        return recurrent(model.gru, Residual(False, model.output), model.turn, hidden=zeros(model.options.width))
    if isinstance(model, TurnWeights):
        return graph(WeightedStep(model), window=query.new_zeros(EXAMPLES, model.options.turns, query.shape[1]))
    if model.reads == "concatenated":
        return f"{model.name} reads one query of all turns so far, so it has no state: call session with one row"
    return f"the state of {model.name} is all turns so far: call session with them"


class Session(nn.Module):
    """queries [B, N, D] -> f'_qry of all turns [B, N, D]; output n depends on turns 1..n, so later rows may be zero."""

    def __init__(self, model: MemoryModel, turns: int):
        super().__init__()
        self.model, self.turns = model, turns

    def forward(self, queries: Tensor) -> Tensor:
        lengths = queries.new_full((queries.shape[0],), self.turns, dtype=torch.int64)
        return self.model(queries, lengths).clone()  # the last turn's model returns its input


class Compose(nn.Module):
    """f_qry of image rows [B, D_image] and text rows [B, D_text]."""

    def __init__(self, composer: Composer):
        super().__init__()
        self.composer = composer

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.composer.query(image, text)


class Target(nn.Module):
    """f_tar of image rows [B, D_image]."""

    def __init__(self, composer: Composer):
        super().__init__()
        self.composer = composer

    def forward(self, image: Tensor) -> Tensor:
        return self.composer.target(image)


def graphs_of(model: MemoryModel, composer: Composer | None, turns: int) -> list[Graph]:
    """Return the graphs of a model and its composer: session, step (where ``step_of`` gives one), and composer."""
    model = model.eval()
    length = 1 if model.reads == "concatenated" else turns
    width = model.dim + model.texts
    queries = torch.randn(EXAMPLES, length, width)
    about = f"f_qry of {length} turns -> f'_qry of each; output n depends on turns 1..n, so unused turns may be zero"
    found = [Graph("session", about, Session(model, length), {"queries": queries}, ("outputs",))]
    if isinstance(step := step_of(model), Graph):
        found.append(step)
    if composer is not None:
        image, text = torch.randn(EXAMPLES, composer.image_dim), torch.randn(EXAMPLES, composer.text_dim)
        rows = {"image": image, "text": text}
        query = Graph("query", "image and text rows -> f_qry", Compose(composer.eval()), rows, ("f_qry",))
        found += [query, Graph("target", "image rows -> f_tar", Target(composer), {"image": image}, ("f_tar",))]
    return found


def random_inputs(graph: Graph, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Return random inputs of another batch size; a scalar stays a number of turns."""
    made = []
    for example in graph.inputs.values():
        if example.dim() == 0:
            made.append(torch.randint(0, 6, (), generator=generator))
        else:
            made.append(torch.rand(batch, *example.shape[1:], generator=generator))
    return made


def as_tuple(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
