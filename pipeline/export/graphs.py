"""Memory models and composers as modules with tensors in and out, and example inputs; all batches are dynamic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.composition.composers.base import Composer
from pipeline.export.steps import EXAMPLES, Graph, step_of
from pipeline.training.models.base import MemoryModel


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
