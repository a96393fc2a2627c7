"""Lookup of the store rows of sessions, by content; no feature is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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
    catalogue = store.catalogue()

    def pair(image: str, text: str) -> bytes | None:
        key = catalogue.get(image)
        return None if key is None else pair_key(key, text_key(text))

    keys = []  # of a session: queries of its turns, of all captions as one text, targets; None: no such image
    for s in sessions:
        turns = [pair(turn.reference, turn.text) for turn in s.turns]
        keys.append((turns, pair(s.turns[0].reference, s.text), [catalogue.get(image) for image in s.targets]))
    queries = _rows(store, "query", (key for turns, whole, _ in keys for key in (*turns, whole)))
    targets = _rows(store, "target", (key for _, _, images in keys for key in images))
    found = FoundRows((), [], [], [], {})
    without = store.fields.get("concatenated") is False
    kept = []
    for session, (turns, whole, images) in zip(sessions, keys, strict=True):
        of = [queries.get(key, -1) for key in turns], queries.get(whole, -1), [targets.get(key, -1) for key in images]
        if missing := _missing(session, *of, without):
            found.reasons[session.id] = f"session {session.id!r}: no {missing} in the store"
            continue
        kept.append(session)
        found.turns.append(of[0])
        found.concatenated.append(of[1])
        found.targets.append(of[2])
    content = digest([session_key(session, catalogue).hex() for session in kept])
    return replace(found, sessions=tuple(kept), content=content)


def _rows(store: Store, table: str, keys: Iterable[bytes | None]) -> dict[bytes | None, int]:
    """Return the row numbers of the keys that are in the table."""
    unique = list(dict.fromkeys(k for k in keys if k is not None))
    if not unique or table not in store.tables:
        return {}
    rows = store.find(table, stack_keys(unique))
    return {key: int(row) for key, row in zip(unique, rows, strict=True) if row >= 0}


def _missing(session: Session, turns: list[int], whole: int, targets: list[int], without: bool) -> str:
    """Describe the first missing row (-1) of a session; "" when all exist."""
    if -1 in turns:
        turn = session.turns[turns.index(-1)]
        return f"query row for turn {turns.index(-1) + 1} (image {turn.reference!r}, text {turn.text!r})"
    if whole < 0 and not without:
        return f"query row for all captions as one text (image {session.turns[0].reference!r})"
    if -1 in targets:
        return f"target row for turn {targets.index(-1) + 1} (image {list(session.targets)[targets.index(-1)]!r})"
    return ""
