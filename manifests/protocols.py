"""Clean splits: protocols that leave out sessions until no test session shares a pair with a train session.

The public split of Multi-turn FashionIQ was made by session, so 55% of its test sessions have a (reference, target)
pair that is also a train pair (``manifests.leaks``). A protocol removes sessions by a fixed rule. Pairs and images are
compared over the whole dataset, regardless of category, which is stricter than the blocks of the tables.

``manifests/splits/<dataset>-<protocol>.json`` are the published lists, written by the command ``splits``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

from manifests.identity import digest
from manifests.schema import Dataset, Session

Protocol = Literal["clean-test", "clean-train", "clean-target"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
RULES: dict[Protocol, str] = {
    "clean-test": "A test session is left out if one of its (reference, target) pairs is a pair of a train session. "
    "All train sessions stay.",
    "clean-train": "A train session is left out if one of its (reference, target) pairs is a pair of a test session. "
    "All test sessions stay.",
    "clean-target": "A train session is left out if it shares a (reference, target) pair with a test session, or if "
    "one of its images is the target of a test session. All test sessions stay.",
}


@dataclass(frozen=True)
class SplitList:
    """A clean split as published: the ids left out, the sessions kept, and a digest of the kept ones by content.

    ``of``: (train, test) sessions before; ``kept``: after.
    """

    dataset: str
    protocol: Protocol
    of: tuple[int, int]
    kept: tuple[int, int]
    left_out: tuple[str, ...]
    digest: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "protocol": self.protocol,
            "rule": RULES[self.protocol],
            "sessions": dict(zip(("train", "test"), self.of, strict=True)),
            "kept": dict(zip(("train", "test"), self.kept, strict=True)),
            "digest": self.digest,
            "left_out": list(self.left_out),
        }


def left_out(dataset: Dataset, protocol: Protocol) -> set[str]:
    """Return the ids of the sessions that the protocol leaves out."""
    train, test = dataset.split("train"), dataset.split("test")
    if protocol == "clean-test":
        seen = {pair for session in train for pair in session.pairs}
        return {s.id for s in test if not seen.isdisjoint(s.pairs)}
    asked = {pair for session in test for pair in session.pairs}
    found = {s.id for s in train if not asked.isdisjoint(s.pairs)}
    if protocol == "clean-target":
        targets = {s.target for s in test}
        found |= {s.id for s in train if any(not targets.isdisjoint(pair) for pair in s.pairs)}
    return found


def split_list(dataset: Dataset, protocol: Protocol) -> SplitList:
    """Return the list of the protocol for a dataset that is loaded without one."""
    out = left_out(dataset, protocol)
    kept = [s for s in dataset.sessions if s.id not in out]
    names = tuple(s.id for s in dataset.sessions if s.id in out)
    return SplitList(dataset.name, protocol, _counts(dataset.sessions), _counts(kept), names, sessions_digest(kept))


def _counts(sessions: Sequence[Session]) -> tuple[int, int]:
    train = sum(s.split == "train" for s in sessions)
    return train, len(sessions) - train


def apply_protocol(dataset: Dataset, protocol: Protocol) -> Dataset:
    """Return the dataset without the sessions that the protocol leaves out; galleries and images stay.

    A note gives the counts, the digest, and whether this is the published list.
    """
    made = split_list(dataset, protocol)
    gone = set(made.left_out)
    known = published(dataset.name, protocol)
    same = ""
    if known is not None:
        same = ", the published list" if known["digest"] == made.digest else ", not the published list"
    (train, test), (all_train, all_test) = made.kept, made.of
    note = (
        f"protocol {protocol}: {train:,} of {all_train:,} train and {test:,} of {all_test:,} test sessions stay "
        f"(digest {made.digest[:12]}{same})"
    )
    return dataset.model_copy(
        update={
            "sessions": tuple(s for s in dataset.sessions if s.id not in gone),
            "notes": (*dataset.notes, note),
            "protocol": protocol,
        }
    )


def published(dataset: str, protocol: str) -> dict[str, Any] | None:
    """Return the list shipped with the project, or None."""
    file = resources.files("manifests") / "splits" / f"{dataset}-{protocol}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def sessions_digest(sessions: Iterable[Session]) -> str:
    """Return the SHA-256 of the sessions' ids, splits, categories, pairs and texts, independent of their order."""
    return digest(
        sorted(
            [s.id, s.split, s.category, [[*pair, turn.text] for pair, turn in zip(s.pairs, s.turns, strict=True)]]
            for s in sessions
        )
    )
