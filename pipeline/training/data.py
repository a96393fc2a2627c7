"""Lookup of the store rows of sessions, by content, and their features as tensors, each unique row once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cache import Store
from manifests.identity import digest, pair_key, session_key, stack_keys, text_key
from manifests.schema import Session
from pipeline.training.errors import FeatureError, MissingFeaturesError


def sessions_digest(sessions: Iterable[Session]) -> str:
    """Return the SHA-256 (64 hex digits) of the sessions, in order: ids, categories, turns and targets."""
    return digest([session.model_dump(mode="json") for session in sessions])


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


class SessionBatch(NamedTuple):
    """Features of the sessions of a batch; short sessions repeat their last turn (paper section 4.2).

    queries: [B, T, D] f_qry; targets: [B, T, D] f_tar of each turn's target; lengths: [B] int64, turns before padding.
    """

    queries: Tensor
    targets: Tensor
    lengths: Tensor


class SessionRows(NamedTuple):
    """Row numbers of the sessions of a batch, int64 [B, T] each; short sessions repeat their last turn.

    Rows of the same fields of ``SessionFeatures`` (texts may be None); lengths: int64 [B], turns before padding.
    """

    queries: Tensor
    targets: Tensor
    texts: Tensor | None
    lengths: Tensor

    def at(self, places: Tensor, lengths: Tensor) -> SessionRows:
        """Select the turns at ``places`` (int64 [B, T]) of the same sessions, which then have ``lengths`` turns."""
        texts = None if self.texts is None else self.texts.gather(1, places)
        return SessionRows(self.queries.gather(1, places), self.targets.gather(1, places), texts, lengths)


@dataclass(frozen=True)
class SessionFeatures:
    """Features of S sessions of up to T turns, all on one device.

    queries: float32 [U, D], unique f_qry rows. targets: float32 [G, D], unique f_tar rows of the turns' targets.
    query_rows, target_rows: int64 [S, T], rows of ``queries`` and ``targets``; a short session repeats its last turn.
    cat_rows: int64 [S], the rows in ``queries`` of all captions as one text with the first reference image.
    lengths: int64 [S], turns before padding. sessions: the S sessions, in row order.
    texts, text_rows: float32 [V, E] and int64 [S, T], text tower features of each turn's feedback (``add_texts``), or
    None; only models with the option ``texts`` read them.
    skipped: ids of sessions with a missing row, which are not loaded; reasons: one line per skipped session.
    """

    queries: Tensor
    targets: Tensor
    query_rows: Tensor
    target_rows: Tensor
    cat_rows: Tensor
    lengths: Tensor
    sessions: tuple[Session, ...]
    has_concatenated: bool = True  # False: ``cat_rows`` are placeholders, as imported features lack these queries
    skipped: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    texts: Tensor | None = None
    text_rows: Tensor | None = None
    dialogs: bool = False  # ``cat_rows`` are the queries of whole dialogs as one chat (``views.view_features``)
    content: str = ""  # SHA-256 of the sessions' content; "" for features without a store

    def __len__(self) -> int:
        return len(self.sessions)

    @property
    def dim(self) -> int:
        return self.queries.shape[1]

    @property
    def turns(self) -> int:
        return self.query_rows.shape[1]

    @property
    def device(self) -> torch.device:
        return self.queries.device

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the sessions: of their content, or of ids and texts for features without a store."""
        return self.content or sessions_digest(self.sessions)

    @property
    def labels(self) -> Tensor:
        """The category of each session, int64 [S], as its place among the sorted names."""
        _, labels = np.unique([s.category for s in self.sessions], return_inverse=True)
        return torch.from_numpy(labels).to(self.device)

    def batch(self, index: Tensor, texts: bool = False) -> SessionBatch:
        """Return the sessions ``index`` (int64 [B]). ``texts``: append the text features, queries are [B, T, D + E]."""
        return self.read(self.rows(index), texts)

    def rows(self, index: Tensor) -> SessionRows:
        texts = None if self.text_rows is None else self.text_rows[index]
        return SessionRows(self.query_rows[index], self.target_rows[index], texts, self.lengths[index])

    def read(self, rows: SessionRows, texts: bool = False) -> SessionBatch:
        """Return the features at ``rows``; ``texts``: queries are [B, T, D + E]. Raises FeatureError without texts."""
        queries = self.queries[rows.queries]
        if texts:
            if self.texts is None or rows.texts is None:
                what = "a model reads the texts of the turns, which were not loaded: the extractor needs a text tower"
                raise FeatureError(f"{what} (see `ls extractors`), or set the model's option texts to 0")
            queries = torch.cat([queries, self.texts[rows.texts]], -1)
        return SessionBatch(queries, self.targets[rows.targets], rows.lengths)

    def concatenated(self, index: Tensor) -> SessionBatch:
        """Return one-turn sessions: query of ST + cat, final target. Raises FeatureError if the store lacks queries."""
        if not self.has_concatenated:
            what = "the imported features hold no query for all captions as one text: import them too (turn 0 of each"
            raise FeatureError(f"{what} session, extractor.concatenated = true), or leave model 'cat' out of the spec")
        last = self.target_rows[index].gather(1, self.lengths[index, None] - 1)
        queries = self.queries[self.cat_rows[index]][:, None]
        return SessionBatch(queries, self.targets[last], torch.ones_like(self.lengths[index]))

    def to(self, device: torch.device | str) -> SessionFeatures:
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def subset(self, index: Sequence[int]) -> SessionFeatures:
        """Return the sessions ``index``, in that order; the feature rows are shared."""
        rows = torch.as_tensor(index, dtype=torch.int64, device=self.device)
        names = ("query_rows", "target_rows", "cat_rows", "lengths", "text_rows")
        picked = {k: getattr(self, k)[rows] for k in names if getattr(self, k) is not None}
        return replace(self, sessions=tuple(self.sessions[i] for i in index), content="", **picked)


def session_features(store: Store, sessions: Iterable[Session] | FoundRows) -> SessionFeatures:
    """Load the features of the sessions from a store with ``query`` and ``target`` rows; images are not read.

    Rows are found by content: by the image's key in ``Store.catalogue`` and the feedback text. A session with a
    missing row (not extracted, or failed) is skipped and listed in ``skipped`` and ``reasons``, so every memory model
    gets the same sessions. ``FoundRows`` are not looked up again.

    Raises MissingFeaturesError if no session is left, FeatureError for NaN or infinite features (naming rows and
    sessions), or f_qry and f_tar of different widths.
    """
    found = sessions if isinstance(sessions, FoundRows) else find_rows(store, tuple(sessions))
    if not found.sessions:
        first = "".join(f"; {reason}" for reason in list(found.reasons.values())[:1])
        what = f"{store.path}: none of {len(found.reasons)} sessions has all of its features{first};"
        raise MissingFeaturesError(f"{what} run `extract` on this spec to fill the store")
    turns = max(len(s.turns) for s in found.sessions)
    query_rows, target_rows = (
        np.array([own + own[-1:] * (turns - len(own)) for own in rows], dtype=np.int64)
        for rows in (found.turns, found.targets)
    )
    cat_rows = np.array(found.concatenated, dtype=np.int64)
    has_concatenated = bool((cat_rows >= 0).all())
    cat_rows = np.where(cat_rows < 0, query_rows[:, 0], cat_rows)

    used, places = np.unique(np.column_stack([query_rows, cat_rows]), return_inverse=True)
    targets_used, target_places = np.unique(target_rows, return_inverse=True)
    queries, targets = store.gather("query", used), store.gather("target", targets_used)
    if queries.shape[1] != targets.shape[1]:
        what = f"{store.path}: f_qry has {queries.shape[1]} dimensions and f_tar {targets.shape[1]}; cosine similarity"
        raise FeatureError(f"{what} needs one width: fit a composer that projects both")
    names = [s.id for s in found.sessions]
    _check_finite(store, "query", queries, used, places, names)
    _check_finite(store, "target", targets, targets_used, target_places, names)
    return SessionFeatures(
        queries=torch.from_numpy(queries.astype(np.float32)),
        targets=torch.from_numpy(targets.astype(np.float32)),
        query_rows=torch.from_numpy(places[:, :-1].astype(np.int64)),
        target_rows=torch.from_numpy(target_places.astype(np.int64)),
        cat_rows=torch.from_numpy(places[:, -1].astype(np.int64)),
        lengths=torch.tensor([len(s.turns) for s in found.sessions], dtype=torch.int64),
        sessions=found.sessions,
        skipped=tuple(found.reasons),
        reasons=tuple(found.reasons.values()),
        has_concatenated=has_concatenated,
        content=found.content,
    )


def add_texts(features: SessionFeatures, backbone: Store) -> SessionFeatures:
    """Return ``features`` with ``texts`` and ``text_rows`` from the table ``text`` of the extractor's store.

    Raises FeatureError for a missing table, a missing text of a session, or NaN or infinite values.
    """
    if "text" not in backbone.tables:
        what = f"{backbone.path}: there are no text rows (tables: {', '.join(backbone.tables)});"
        raise FeatureError(f"{what} set the models' option texts to 0, or use an extractor with a text tower")
    turns = (s.turns[min(n, len(s.turns) - 1)] for s in features.sessions for n in range(features.turns))
    found = backbone.find("text", stack_keys(text_key(turn.text) for turn in turns))
    if (found < 0).any():
        session = features.sessions[int(np.flatnonzero(found < 0)[0]) // features.turns]
        what = f"no text row for a turn of session {session.id!r}"
        raise FeatureError(f"{backbone.path}: {what}; run `extract` on this spec again")
    used, places = np.unique(found, return_inverse=True)
    texts = np.asarray(backbone.gather("text", used), dtype=np.float32)
    if not np.isfinite(texts).all():
        raise FeatureError(f"{backbone.path}: table 'text' holds NaN or infinite values; verify the store")
    rows = torch.from_numpy(places.reshape(len(features), features.turns).astype(np.int64))
    return replace(features, texts=torch.from_numpy(texts).to(features.device), text_rows=rows.to(features.device))


def _check_finite(
    store: Store, table: str, features: np.ndarray, rows: np.ndarray, uses: np.ndarray, names: list[str]
) -> None:
    """Raise FeatureError for NaN or infinity in features [n, D]; rows: [n] in the store; uses: [S, k], by session."""
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        users = np.flatnonzero(np.isin(uses, bad).any(axis=1))
        shown = ", ".join(str(r) for r in rows[bad[:5]]) + (", ..." if len(bad) > 5 else "")
        what = (
            f"table {table!r} holds NaN or infinite values in {len(bad)} rows ({shown}), used by {len(users)} sessions"
        )
        fix = "verify the store and extract these rows again"
        raise FeatureError(f"{store.path}: {what} (first: {names[users[0]]!r}); {fix}")
