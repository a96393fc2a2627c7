"""Fitting of a composer on the single-turn triplets of a dataset, from cached embeddings only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from cache import Store
from manifests.errors import FashionNTMError, IncompleteError
from manifests.identity import digest, stack_keys, text_key
from manifests.schema import NO_IMAGE, Dataset, Frozen, Session
from pipeline.composition.composers.base import Composer
from pipeline.evaluation.metrics import recall
from pipeline.evaluation.ranking import ranks


@dataclass(frozen=True)
class Triplets:
    """Row numbers into the ``image`` and ``text`` tables, each int64 [n], and the category of each triplet.

    Reference -1: a text-only turn; ``Embeddings.image`` has a zero row at its end for it.
    """

    reference: np.ndarray
    text: np.ndarray
    target: np.ndarray
    category: np.ndarray  # str [n]
    content: str  # SHA-256 of the triplets by content (image and text keys), in order
    left_out: int  # triplets with a missing row

    def __len__(self) -> int:
        return len(self.reference)


def triplets(store: Store, sessions: Iterable[Session]) -> Triplets:
    """Return the unique triplets (reference, text, turn's target) of ``sessions``, in order of first appearance."""
    unique: dict[tuple[str, str, str], str] = {}
    for session in sessions:
        for triplet in session.triplets:
            unique.setdefault(triplet, session.category)
    catalogue = store.catalogue()
    known = [t for t in unique if t[0] in catalogue and t[2] in catalogue]
    references, targets = (store.find("image", stack_keys(catalogue[t[n]] for t in known)) for n in (0, 2))
    rows = np.stack([references, store.find("text", stack_keys(text_key(t[1]) for t in known)), targets])
    no_image = np.array([t[0] == NO_IMAGE for t in known], dtype=bool)
    present = ((rows >= 0) | (no_image & (np.arange(3)[:, None] == 0))).all(axis=0)
    category = np.array([unique[t] for t in known], dtype=object)[present]
    reference, text, target = rows[:, present]
    used = [t for t, there in zip(known, present, strict=True) if there]
    content = digest([[catalogue[a].hex(), text_key(t).hex(), catalogue[b].hex()] for a, t, b in used])
    return Triplets(reference, text, target, category, content, len(unique) - len(used))


class FitOptions(Frozen):
    """Options of fitting a composer (``[composer.fit]`` of a run spec)."""

    epochs: int = Field(8, ge=1)
    batch_size: int = Field(512, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    scale: float = Field(30.0, gt=0)  # inverse temperature of the cosine logits
    seed: int = 0


@dataclass(frozen=True)
class Embeddings:
    """Rows of a backbone store as float32 tensors: ``image`` [images, Di], ``text`` [texts, Dt].

    When loaded, the last row of ``image`` is zero: the reference of text-only turns, number -1.
    """

    image: Tensor
    text: Tensor

    @classmethod
    def load(cls, store: Store) -> Embeddings:
        tables = (np.asarray(store.load(name), dtype=np.float32) for name in ("image", "text"))
        image, text = map(torch.from_numpy, tables)
        return cls(torch.cat([image, image.new_zeros(1, image.shape[1])]), text)


def contrastive_loss(queries: Tensor, targets: Tensor, target_rows: Tensor, scale: float) -> Tensor:
    """Return the in-batch cross-entropy over cosine similarity of unit-norm features (equation in section 3.2).

    Other triplets with the same target image are not negatives and are masked out.
    queries, targets [B, D], target_rows [B] -> scalar.
    """
    logits = scale * queries @ targets.T
    same = target_rows[:, None] == target_rows[None, :]
    same.fill_diagonal_(False)
    return cross_entropy(logits.masked_fill(same, float("-inf")), torch.arange(len(queries), device=queries.device))


def fit_composer(
    composer: Composer, store: Store, sessions: tuple[Session, ...], options: FitOptions
) -> Iterator[dict[str, float]]:
    """Train ``composer`` in place on the triplets of ``sessions``; yield {"epoch", "loss"} after each epoch.

    Raises IncompleteError when the store has none of the triplets, and the errors of ``fit_on_rows``.
    """
    data = triplets(store, sessions)
    if len(data) < 2:
        what = f"{len(data)} train triplets with all features, of {data.left_out + len(data)}"
        raise IncompleteError(f"{store.path} holds {what}")
    reference, text, target = (torch.from_numpy(c) for c in (data.reference, data.text, data.target))
    yield from fit_on_rows(composer, Embeddings.load(store), reference, text, target, options)


def fit_on_rows(
    composer: Composer,
    rows: Embeddings,
    reference: Tensor,
    text: Tensor,
    target: Tensor,
    options: FitOptions,
    group: Tensor | None = None,
) -> Iterator[dict[str, float]]:
    """Train ``composer`` in place on triplets given as row numbers, int64 [n] each; yield {"epoch", "loss"}.

    ``group`` int64 [n]: triplets of a group are adjacent in a batch, so that similar items are each other's negatives.
    The same seed gives the same weights on the same machine and thread count; the global RNG state is preserved.
    Raises FashionNTMError when the loss is not finite.
    """
    order = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(composer.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    steps = options.epochs * -(-len(reference) // options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        for epoch in range(1, options.epochs + 1):
            composer.train()
            losses = []
            for batch in _order(len(reference), group, order).split(options.batch_size):
                queries = composer.query(rows.image[reference[batch]], rows.text[text[batch]])
                targets = composer.target(rows.image[target[batch]])
                loss = contrastive_loss(queries, targets, target[batch], options.scale)
                if not torch.isfinite(loss):
                    raise FashionNTMError(f"composer loss is {loss.item()} in epoch {epoch}: lower fit.learning_rate")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
            yield {"epoch": epoch, "loss": torch.stack(losses).mean().item()}
    composer.eval()


def _order(count: int, group: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return a random order of the triplets; groups, if given, stay contiguous."""
    mixed = torch.randperm(count, generator=generator)
    if group is None:
        return mixed
    place = torch.randperm(int(group.max()) + 1, generator=generator)
    return mixed[torch.argsort(place[group[mixed]], stable=True)]


@torch.no_grad()
def single_turn_recall(
    composer: Composer, store: Store, dataset: Dataset, sessions: tuple[Session, ...], ks: tuple[int, ...] = (5, 10, 50)
) -> dict[str, float]:
    """Return single-turn R@K in percent over the triplets of ``sessions``, averaged over categories, and their count.

    Candidates: the category's gallery of the sessions' split, including the reference, as in the paper's protocol.
    """
    composer.eval()
    data, rows, catalogue = triplets(store, sessions), Embeddings.load(store), store.catalogue()
    found = []
    for category in dict.fromkeys(data.category):
        images = dataset.gallery(category, sessions[0].split).images
        gallery = _rows(store, [catalogue[i] for i in images if i in catalogue], data, category)
        mine = data.category == category
        query = composer.query(rows.image[data.reference[mine]], rows.text[data.text[mine]])
        position = {int(row): n for n, row in enumerate(gallery)}
        target = np.array([position[int(row)] for row in data.target[mine]])
        found.append(ranks(query.numpy(), composer.target(rows.image[gallery]).numpy(), target))
    return mean_recalls(found, ks)


def mean_recalls(found: Sequence[np.ndarray], ks: tuple[int, ...]) -> dict[str, float]:
    """Return R@K in percent averaged over categories from the ranks [n] of each, and the count as "triplets"."""
    means = {f"R@{k}": float(np.mean([recall(rank, k) for rank in found])) for k in ks if found}
    return means | {"triplets": float(sum(map(len, found)))}


def _rows(store: Store, keys: list[bytes], data: Triplets, category: str) -> np.ndarray:
    """Return the unique gallery rows; targets missing from the gallery (train lists are incomplete) are added."""
    found = store.find("image", stack_keys(keys))
    targets = data.target[data.category == category]
    return np.unique(np.concatenate([found[found >= 0], targets]))
