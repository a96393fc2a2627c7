"""A synthetic retrieval task that needs all four turns: the target combines the answers of all of them.

Each turn gives one of V values, for a different attribute at each turn. f_qry(n) is the value's vector with noise, from
the same vectors at every turn. f_tar of an item is the (normalized) sum, over its four attributes, of the value's vector
and a vector of this value of this attribute. The gallery is all V^4 items; a quarter of the items is held out from
training, and the test sessions end in these.

Bounds on the rank are known: by chance, from the last turn alone, and from the values without their order. Ablations
reset part of the same model's state at every turn: the state of its memories (memory, head positions, read vectors), of
its controllers (LSTM states), or both. They are trained like the whole model.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manifests.schema import Session, Training, Turn
from pipeline.core.text_table import aligned
from pipeline.evaluation.metrics import recall
from pipeline.evaluation.ranking import ranks
from pipeline.training.data import SessionFeatures
from pipeline.training.determinism import derive_seed, seeded
from pipeline.training.fit import fit
from pipeline.training.models import MemoryModel, build_model
from pipeline.training.models._ntm import MemoryState
from pipeline.training.models.cm_ntm import CMNTM
from pipeline.training.validate import embed

TURNS = 4
CUTOFFS = (1, 5)


class AblatedCMNTM(CMNTM):
    """A CM-NTM that resets the state of its memories, its controllers, or both before each turn."""

    memory_carries = controller_carries = True

    def _turn(
        self, features: Sequence[Tensor], states: tuple[MemoryState, ...]
    ) -> tuple[Tensor, tuple[MemoryState, ...]]:
        kept = []
        for state, start in zip(states, self.initial_state(len(features[0])).stages, strict=True):
            if not self.memory_carries:
                state = state._replace(memory=start.memory, read=start.read, weights=start.weights)
            if not self.controller_carries:
                state = state._replace(hidden=start.hidden, cell=start.cell)
            kept.append(state)
        return super()._turn(features, tuple(kept))


def build_ablated(
    options: dict[str, Any], dim: int, seed: int, memory_carries: bool, controller_carries: bool
) -> MemoryModel:
    """Build the model of ``build_model("cm_ntm", ...)`` with one or both carried states removed."""
    with seeded(derive_seed(seed, "init")):
        model = AblatedCMNTM(CMNTM.Options.model_validate(options), dim)
    model.memory_carries, model.controller_carries = memory_carries, controller_carries
    return model


class RecallTask:
    """Items, features and split, the same for every model. items: [G, 4] values; gallery: [G, D]."""

    def __init__(self, values: int, dim: int, noise: float, seed: int):
        generator = torch.Generator().manual_seed(derive_seed(seed, "task"))
        self.values, self.noise = values, noise
        self.said = normalize(torch.randn(values, dim, generator=generator), dim=-1)
        self.meant = normalize(torch.randn(TURNS, values, dim, generator=generator), dim=-1)
        self.items = torch.tensor(list(itertools.product(range(values), repeat=TURNS)))
        self.gallery = self.targets(self.items)[:, -1]
        order = torch.randperm(len(self.items), generator=generator)
        cut = len(order) // 4
        self.unseen, self.seen = order[:cut], order[cut:]

    def targets(self, items: Tensor) -> Tensor:
        """Return f_tar of the requests up to each turn: [S, 4] -> [S, 4, D]."""
        parts = self.said[items] + self.meant[torch.arange(TURNS), items]
        return normalize(parts.cumsum(1), dim=-1)

    def sessions(self, among: Tensor, count: int, seed: int) -> tuple[SessionFeatures, Tensor]:
        """Return ``count`` sessions that end in items of ``among``, and the item [S] of each."""
        generator = torch.Generator().manual_seed(seed)
        chosen = among[torch.randint(len(among), (count,), generator=generator)]
        said = self.said[self.items[chosen]]
        noise = torch.randn(said.shape, generator=generator) / math.sqrt(said.shape[2])
        queries = normalize(said + self.noise * noise, dim=-1)
        rows = torch.arange(count * TURNS).view(count, TURNS)
        names = [f"item {n}" for n in chosen.tolist()]
        turns = [tuple(Turn(reference=f"s{n}-{t}", captions=("value",)) for t in range(TURNS)) for n in range(count)]
        about: dict[str, Any] = {"category": "all", "split": "train"}
        made = tuple(Session(id=f"s{n}", target=names[n], turns=turns[n], **about) for n in range(count))
        of, lengths = self.targets(self.items[chosen]).flatten(0, 1), torch.full((count,), TURNS)
        return SessionFeatures(queries.flatten(0, 1), of, rows, rows, rows[:, 0], lengths, made), chosen

    def bounds(self) -> dict[str, dict[str, float]]:
        """Return the expected R@K, in percent, of the best guess from partial knowledge."""
        size = len(self.items)
        counts = torch.stack([(self.items == v).sum(1) for v in range(self.values)], 1)
        alike = torch.unique(counts, dim=0, return_counts=True)[1].tolist()
        found: dict[str, Callable[[int], float]] = {
            "chance": lambda k: min(1, k / size),
            "best from the last turn alone": lambda k: min(1, k * self.values / size),
            "best from the values without their order": lambda k: sum(min(n, k) for n in alike) / size,
            "all four turns": lambda k: 1,
        }
        return {name: {f"R@{k}": 100.0 * share(k) for k in CUTOFFS} for name, share in found.items()}


ABLATIONS = {  # name: (memory carries, controller carries)
    "CM-NTM": (True, True),
    "CM-NTM, controllers reset each turn": (True, False),
    "CM-NTM, memories reset each turn": (False, True),
    "CM-NTM, no state": (False, False),
}
BASELINES = ("last", "avg", "ewma", "lstm")


def run(
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 20,
    sessions: int = 1024,
    values: int = 4,
    dim: int = 24,
    stages: int = 2,
    slots: int = 4,
    hidden: int = 24,
    noise: float = 0.3,
    learning_rate: float = 3e-3,
    scale: float = 10.0,
    init: str = "symmetry-breaking",
    models: Sequence[str] = (),
    progress: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Return R@1 and R@5 of each model on unseen items, mean and standard deviation over ``seeds`` (weights and sessions).

    ``models``: a selection of the names in the table; all by default.
    """
    options = {"stages": stages, "slots": slots, "hidden": hidden, "init": init}
    training = Training(epochs=epochs, batch_size=64, learning_rate=learning_rate, scale=scale)
    scores: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        task = RecallTask(values, dim, noise, seed)
        train, _ = task.sessions(task.seen, sessions, derive_seed(seed, "train"))
        test, wanted = task.sessions(task.unseen, 512, derive_seed(seed, "test"))
        subjects = {name: build_ablated(options, dim, seed, *carries) for name, carries in ABLATIONS.items()}
        for name in BASELINES:
            subjects[name] = build_model(name, {"hidden": hidden} if name == "lstm" else {}, dim, seed)
        for name, model in subjects.items():
            if not models or name in models:
                progress(f"seed {seed}: {name}")
                for _ in fit(model, train, training, seed):
                    pass
                found = ranks(embed(model, test).numpy(), task.gallery.numpy(), wanted.numpy())
                scores.setdefault(name, []).append({f"R@{k}": recall(found, k) for k in CUTOFFS})
    about = {"turns": TURNS, "values": values, "gallery": values**TURNS, "unseen": len(task.unseen), "dim": dim}
    about |= {"noise": noise, "train sessions": sessions, "test sessions": 512}
    result = {"task": about, "model": {**options, "width": dim}, "training": training.model_dump()}
    return {**result, "seeds": list(seeds), "bounds": task.bounds(), "scores": scores}


def render(result: dict[str, Any]) -> str:
    task = result["task"]
    lines = [
        ", ".join(f"{key} {value}" for key, value in task.items()),
        "CM-NTM: " + ", ".join(f"{key} {value}" for key, value in result["model"].items()),
        f"seeds {result['seeds']}, {result['training']['epochs']} epochs; items of the test were never trained on",
        "",
    ]
    rows = [["percent", *(f"R@{k}" for k in CUTOFFS)]]
    rows += [[f"({name})", *(f"{value:.1f}" for value in bound.values())] for name, bound in result["bounds"].items()]
    for name, seeds in result["scores"].items():
        rows.append([name, *(_spread([s[f"R@{k}"] for s in seeds]) for k in CUTOFFS)])
    return "\n".join([*lines, *aligned(rows)])


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
