"""Lookup of the store rows of sessions, by content; no feature is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from cache import Store
from manifests.identity import digest, pair_key, session_key, stack_keys, text_key
from manifests.schema import Session


@dataclass(frozen=True)
class FoundRows:
    """The sessions with all of their rows, and their row numbers in the store's tables.

    turns: rows of table ``query`` for each turn of each session. concatenated: rows of table ``query`` for all captions
    as one text, or -1 in a store of imported features without these queries. targets: rows of table ``target`` for
    each turn. reasons: session id -> the missing row of a skipped session.
    """

    sessions: tuple[Session, ...]
    turns: list[list[int]]
    concatenated: list[int]
    targets: list[list[int]]
    reasons: dict[str, str]
    content: str = ""  # SHA-256 of the content of the kept sessions, in order (``manifests.identity.session_key``)


def find_rows(store: Store, sessions: Sequence[Session]) -> FoundRows:
    """Look up the rows of the sessions, without loading features."""
    catalogue = store.catalogue()
    keys = [_keys(session, catalogue) for session in sessions]
    queries = _rows(store, "query", (k for needed in keys for k in (*needed.turns, needed.concatenated)))
    targets = _rows(store, "target", (k for needed in keys for k in needed.targets))
    found = FoundRows((), [], [], [], {})
    without = store.fields.get("concatenated") is False
    kept = []
    for session, needed in zip(sessions, keys, strict=True):
        missing = _missing(session, needed, queries, targets, without)
        if missing:
            found.reasons[session.id] = f"session {session.id!r}: no {missing} in the store"
            continue
        kept.append(session)
        found.turns.append([queries[k] for k in needed.turns if k is not None])
        found.concatenated.append(queries.get(needed.concatenated, -1) if needed.concatenated else -1)
        found.targets.append([targets[k] for k in needed.targets if k is not None])
    content = digest([session_key(session, catalogue).hex() for session in kept])
    return replace(found, sessions=tuple(kept), content=content)


class _Keys(NamedTuple):
    """Keys of a session's rows; None for images that are not in ``Store.catalogue``."""

    turns: list[bytes | None]
    concatenated: bytes | None
    targets: list[bytes | None]


def _keys(session: Session, catalogue: dict[str, bytes]) -> _Keys:
    def pair(image: str, text: str) -> bytes | None:
        key = catalogue.get(image)
        return None if key is None else pair_key(key, text_key(text))

    return _Keys(
        turns=[pair(turn.reference, turn.text) for turn in session.turns],
        concatenated=pair(session.turns[0].reference, session.text),
        targets=[catalogue.get(image) for image in session.targets],
    )


def _rows(store: Store, table: str, keys: Iterable[bytes | None]) -> dict[bytes, int]:
    """Return the row numbers of the keys that are in the table."""
    unique = list(dict.fromkeys(k for k in keys if k is not None))
    if not unique or table not in store.tables:
        return {}
    rows = store.find(table, stack_keys(unique))
    return {key: int(row) for key, row in zip(unique, rows, strict=True) if row >= 0}


def _missing(session: Session, keys: _Keys, queries: dict[bytes, int], targets: dict[bytes, int], without: bool) -> str:
    """Describe the first missing row of a session; "" when all exist."""
    for number, (turn, key) in enumerate(zip(session.turns, keys.turns, strict=True), start=1):
        if key is None or key not in queries:
            return f"query row for turn {number} (image {turn.reference!r}, text {turn.text!r})"
    if not without and (keys.concatenated is None or keys.concatenated not in queries):
        return f"query row for all captions as one text (image {session.turns[0].reference!r})"
    for number, (image, key) in enumerate(zip(session.targets, keys.targets, strict=True), start=1):
        if key is None or key not in targets:
            return f"target row for turn {number} (image {image!r})"
    return ""
