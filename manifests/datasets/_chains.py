"""Build sessions from single-turn edges by a rule close to the paper's Multi-turn Shoes; read chain lists.

The paper joins single-turn transactions whose target is the next one's reference (section 4.1) and publishes neither
its chains nor its rule. The rule here gives 1,684 / 917 / 942 train sessions of 2 / 3 / 4 turns; the paper's Table 1
has 1,659 / 1,036 / 982. Other rules are as plausible, so chain lists can be read:

    {"id": "shoes/train/00000", "split": "train", "images": ["I_1", ..., "I_N", "target"], "captions": ["U_1", ...]}

One line per session; "captions" is optional if the relative-captions file has every pair of the chain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, model_validator

from manifests.datasets._files import read_records
from manifests.errors import Problems
from manifests.schema import Frozen, Session, Split, Turn

LONGEST = 4  # the paper's sessions have 2, 3 or 4 turns


class Edge(NamedTuple):
    """Single-turn transaction: reference image, target image, relative caption."""

    reference: str
    target: str
    caption: str


Chain = tuple[Edge, ...]


def build_chains(edges: Sequence[Edge]) -> list[Chain]:
    """Return the chains of 2 to ``LONGEST`` edges, shorter ones first, each length in the order of construction.

    Self-loops are dropped. From every edge in order, each chain of L-1 edges is extended by the edges that leave its
    end image, in order, except to an image that is already a reference of the chain. For each start image, only the
    first chain of every length L is kept. A kept chain that is a prefix of a kept longer chain is no session.
    """
    rows = [row for row, edge in enumerate(edges) if edge.reference != edge.target]
    leaving: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        leaving[edges[row].reference].append(row)
    kept: list[list[tuple[int, ...]]] = [[(row,) for row in rows]]
    for _ in range(2, LONGEST + 1):
        longer: dict[str, tuple[int, ...]] = {}
        for chain in kept[-1]:
            start = edges[chain[0]].reference
            if start in longer:
                continue
            used = {edges[row].reference for row in chain}
            nexts = (row for row in leaving[edges[chain[-1]].target] if edges[row].target not in used)
            if (following := next(nexts, None)) is not None:
                longer[start] = (*chain, following)
        kept.append(list(longer.values()))
    chains: list[Chain] = []
    for index in range(1, len(kept)):
        begun = {chain[:-1] for chain in kept[index + 1]} if index + 1 < len(kept) else set()
        chains += [tuple(edges[row] for row in chain) for chain in kept[index] if chain not in begun]
    return chains


def to_sessions(chains: Iterable[Chain], category: str, split: Split) -> list[Session]:
    """Convert chains to sessions with ids ``<category>/<split>/<number of the chain>``."""
    return [
        Session(
            id=f"{category}/{split}/{number:05d}",
            category=category,
            split=split,
            turns=tuple(Turn(reference=edge.reference, captions=(edge.caption,)) for edge in chain),
            target=chain[-1].target,
        )
        for number, chain in enumerate(chains)
    ]


class ChainRecord(Frozen):
    """Line of a chain list."""

    id: str = Field(min_length=1)
    split: Split
    images: tuple[str, ...] = Field(min_length=3)
    captions: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_caption_a_turn(self) -> ChainRecord:
        if self.captions is not None and len(self.captions) != len(self.images) - 1:
            raise ValueError(f"{len(self.captions)} captions for {len(self.images) - 1} turns")
        if self.captions is not None and any(not c.strip() for c in self.captions):
            raise ValueError("empty caption: every feedback text needs at least one word")
        return self


def read_chains(path: Path, edges: Iterable[Edge], category: str, problems: Problems) -> list[Session]:
    """Return the sessions of a chain list; missing captions come from the first edge of each pair."""
    known: dict[tuple[str, str], str] = {}
    for edge in edges:
        known.setdefault((edge.reference, edge.target), edge.caption)
    sessions = []
    for line, record in read_records(path, ChainRecord, problems):
        pairs = list(pairwise(record.images))
        captions = record.captions or tuple(known.get(pair, "") for pair in pairs)
        unknown = [pair for pair, caption in zip(pairs, captions, strict=True) if not caption]
        for reference, target in unknown:
            what = f"no caption for {reference!r} -> {target!r}"
            problems.add(f"line {line}", what, "add 'captions', or use the edges it was made from", file=path)
        if not unknown:
            turns = tuple(Turn(reference=p[0], captions=(c,)) for p, c in zip(pairs, captions, strict=True))
            sessions.append(
                Session(id=record.id, category=category, split=record.split, turns=turns, target=record.images[-1])
            )
    return sessions
