"""Memory models and composers as modules with tensors in and out, and example inputs; all batches are dynamic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.composition.composers.base import Composer
from pipeline.training.models.avg import Average, Total
from pipeline.training.models.base import MemoryModel
from pipeline.training.models.cm_ntm import CMNTM, CascadeState
from pipeline.training.models.ewma import EWMA, Moving
from pipeline.training.models.last import LastTurn

EXAMPLES = 3  # batch size of the example inputs; 0 and 1 would become constants of the graph


class Graph(NamedTuple):
    """A module to export. inputs: name -> example, whose first axis is the batch, except for a scalar; outputs: names."""

    name: str
    about: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class Session(nn.Module):
    """queries [B, N, D] -> f'_qry of all turns [B, N, D]; output n depends on turns 1..n, so later rows may be zero."""

    def __init__(self, model: MemoryModel, turns: int):
        super().__init__()
        self.model, self.turns = model, turns

    def forward(self, queries: Tensor) -> Tensor:
        lengths = queries.new_full((queries.shape[0],), self.turns, dtype=torch.int64)
        return self.model(queries, lengths).clone()  # the last turn's model returns its input


class CascadeStep(nn.Module):
    """One turn of the CM-NTM with the number of earlier turns as a tensor. Equals ``CMNTM.step``."""

    def __init__(self, model: CMNTM):
        super().__init__()
        self.model = model

    def forward(self, query: Tensor, turn: Tensor, average: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """query [B, D], turn int64 [], average [B, D], and memory, read, hidden, cell, weights of each stage."""
        model = self.model
        stages = model.initial_state(1).stages
        size = len(stages[0])
        states = tuple(type(s)(*state[n * size : (n + 1) * size]) for n, s in enumerate(stages))
        output, moved = model._turn((*self._derived(query, turn), query), states)
        kind = model.residual.kind
        if kind == "ewma":
            alpha = model.residual.alpha
            average = torch.where(turn == 0, query, alpha * query + (1 - alpha) * average)
            output = average + output
        elif kind:
            output = query + output
        return output, average, *(part for stage in moved for part in stage)

    def _derived(self, query: Tensor, turn: Tensor) -> tuple[Tensor, ...]:
        derived = self.model.derived
        if derived is None:
            return ()
        place = turn.clamp(max=len(derived.running_mean) - 1).reshape(1)
        mean, var = derived.running_mean.index_select(0, place)[0], derived.running_var.index_select(0, place)[0]
        made = (F.linear(query, derived.weight) - mean) * torch.rsqrt(var + derived.eps) * derived.gain + derived.bias
        return made.view(-1, derived.count, derived.dim).unbind(1)


class AverageStep(nn.Module):
    """One turn of the mean of all turns: query [B, D], turn int64 [], total [B, D]."""

    def forward(self, query: Tensor, turn: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = total + query
        return total / (turn + 1), total


class MovingStep(nn.Module):
    """One turn of EWMA: query [B, D], turn int64 [], average [B, D]."""

    def __init__(self, model: EWMA):
        super().__init__()
        self.register_buffer("alpha", model.alpha.clone())

    def forward(self, query: Tensor, turn: Tensor, average: Tensor) -> tuple[Tensor, Tensor]:
        average = torch.where(turn == 0, query, self.alpha * query + (1 - self.alpha) * average)
        return average, average.clone()


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
    """Return the graphs of a model and its composer: session, step (models with a fixed-size state), and composer."""
    model = model.eval()
    length = 1 if model.reads == "concatenated" else turns
    width = model.dim + model.texts
    queries = torch.randn(EXAMPLES, length, width)
    about = f"f_qry of {length} turns -> f'_qry of each; output n depends on turns 1..n, so unused turns may be zero"
    found = [Graph("session", about, Session(model, length), {"queries": queries}, ("outputs",))]
    if (step := step_of(model)) is not None:
        found.append(step)
    if composer is not None:
        image, text = torch.randn(EXAMPLES, composer.image_dim), torch.randn(EXAMPLES, composer.text_dim)
        query = Graph(
            "query",
            "image and text rows -> f_qry",
            Compose(composer.eval()),
            {"image": image, "text": text},
            ("f_qry",),
        )
        found += [query, Graph("target", "image rows -> f_tar", Target(composer), {"image": image}, ("f_tar",))]
    return found


def step_of(model: MemoryModel) -> Graph | None:
    """Return the graph of one turn, or None for a model whose state grows with the turns (use "session")."""
    query, turn = torch.randn(EXAMPLES, model.dim), torch.tensor(0)
    state, about = (
        model.initial_state(EXAMPLES),
        "one turn: f_qry(n), the number of earlier turns, the state -> f'_qry(n), the next state",
    )
    if isinstance(state, CascadeState) and isinstance(model, CMNTM):
        names = [f"stage{n}.{part}" for n, stage in enumerate(state.stages, start=1) for part in stage._fields]
        parts = [part.clone() for stage in state.stages for part in stage]
        inputs = {"query": query, "turn": turn, "average": state.average, **dict(zip(names, parts, strict=True))}
        return Graph(
            "step", about, CascadeStep(model), inputs, ("output", "next.average", *(f"next.{n}" for n in names))
        )
    if isinstance(state, Total) and isinstance(model, Average):
        return Graph(
            "step", about, AverageStep(), {"query": query, "turn": turn, "total": state.total}, ("output", "next.total")
        )
    if isinstance(state, Moving) and isinstance(model, EWMA):
        inputs = {"query": query, "turn": turn, "average": state.average}
        return Graph("step", about, MovingStep(model), inputs, ("output", "next.average"))
    if isinstance(model, LastTurn):
        return Graph("step", "one turn: f_qry(n) -> f'_qry(n)", Same(), {"query": query}, ("output",))
    return None


class Same(nn.Module):
    """The last turn alone: query [B, D] -> [B, D]."""

    def forward(self, query: Tensor) -> Tensor:
        return query.clone()


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
