"""Small sessions with features: straight in memory, and in a real store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cache import Store, StoreWriter
from manifests.identity import caption_key, pair_key, stack_keys, text_key
from manifests.schema import Session, Turn
from pipeline.training.data import SessionFeatures

WIDTH = 6


def sessions(lengths: Sequence[int] = (2, 3, 2, 4, 3)) -> tuple[Session, ...]:
    """One session of each length over the images "i0", "i1", ...; no two share a query."""
    made = []
    for number, turns in enumerate(lengths):
        first = 10 * number
        made.append(
            Session(
                id=f"s{number}",
                category="dress" if number % 2 == 0 else "shirt",
                split="train",
                turns=tuple(
                    Turn(reference=f"i{first + n}", captions=(f"feedback {number} {n}",)) for n in range(turns)
                ),
                target=f"i{first + turns}",
            )
        )
    return tuple(made)


def image_key_of(image: str) -> bytes:
    return caption_key(f"caption of {image}")


def write_store(
    path: Path,
    given: Sequence[Session],
    width: int = WIDTH,
    target_width: int | None = None,
    without_query: Sequence[tuple[str, str]] = (),
    without_target: Sequence[str] = (),
    unbound: Sequence[str] = (),
) -> Store:
    """A store with the rows of these sessions but those named: (image id, text) queries, targets, unbound images."""
    images = sorted({i for s in given for i in (*(t.reference for t in s.turns), *s.targets)})
    asked = {(t.reference, t.text) for s in given for t in s.turns} | {(s.turns[0].reference, s.text) for s in given}
    queries = sorted(asked - set(without_query))
    targets = [i for i in images if i not in set(without_target)]
    with StoreWriter(path, dataset="toy", extractor="random", fields={"width": width}, execution={}) as writer:
        writer.bind({i: image_key_of(i) for i in images if i not in set(unbound)})
        keys = stack_keys(pair_key(image_key_of(image), text_key(text)) for image, text in queries)
        writer.commit("query", keys, np.stack([row(f"q{i}{t}", width) for i, t in queries]))
        keys = stack_keys(image_key_of(i) for i in targets)
        writer.commit("target", keys, np.stack([row(f"t{i}", target_width or width) for i in targets]))
    return Store.open(path)


def row(name: str, width: int = WIDTH) -> np.ndarray:
    """The float32 feature [width] that stands under this name."""
    values = np.random.default_rng(list(name.encode())).standard_normal(width)
    return (values / np.linalg.norm(values)).astype(np.float32)


def cumulative(count: int, turns: int = 3, kinds: int = 8, width: int = 16, seed: int = 0) -> SessionFeatures:
    """A task that needs memory: turn n asks for one of ``kinds`` things, its target is the sum of all asked so far.

    Sessions have 2 to ``turns`` turns. f_qry(n) is the feature of turn n's thing, so the last turn alone cannot know
    the others. The same ``kinds`` things stand behind every seed; the seed draws the sessions.
    """
    things = torch.nn.functional.normalize(
        torch.randn(kinds, width, generator=torch.Generator().manual_seed(99)), dim=-1
    )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(kinds, generator=generator)[:turns] for _ in range(count)])
    lengths = torch.randint(2, turns + 1, (count,), generator=generator)
    position = torch.minimum(torch.arange(turns).expand(count, -1), lengths[:, None] - 1)
    sums = torch.nn.functional.normalize(things[chosen].cumsum(1), dim=-1)
    targets, rows = torch.unique(sums.reshape(-1, width), dim=0, return_inverse=True)
    made = tuple(
        Session(
            id=str(n),
            category="all",
            split="train",
            turns=tuple(Turn(reference=f"{n}-{t}", captions=(f"thing {chosen[n, t]}",)) for t in range(length)),
            target=f"{n}-end",
        )
        for n, length in enumerate(lengths.tolist())
    )
    return SessionFeatures(
        queries=things,
        targets=targets,
        query_rows=chosen.gather(1, position),
        target_rows=rows.view(count, turns).gather(1, position),
        cat_rows=chosen[:, 0],
        lengths=lengths,
        sessions=made,
    )
