"""Single-turn triplets (reference image, feedback, target image) of sessions, as row numbers of a store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cache import Store
from manifests.identity import digest, stack_keys, text_key
from manifests.schema import NO_IMAGE, Session


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
    rows = np.stack(
        [
            store.find("image", stack_keys(catalogue[t[0]] for t in known)),
            store.find("text", stack_keys(text_key(t[1]) for t in known)),
            store.find("image", stack_keys(catalogue[t[2]] for t in known)),
        ]
    )
    no_image = np.array([t[0] == NO_IMAGE for t in known], dtype=bool)
    present = ((rows >= 0) | (no_image & (np.arange(3)[:, None] == 0))).all(axis=0)
    category = np.array([unique[t] for t in known], dtype=object)[present]
    reference, text, target = rows[:, present]
    used = [t for t, there in zip(known, present, strict=True) if there]
    content = digest([[catalogue[a].hex(), text_key(t).hex(), catalogue[b].hex()] for a, t, b in used])
    return Triplets(reference, text, target, category, content, len(unique) - len(used))
