"""Features of an evaluation view: sessions of one length, or the last turns of each session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from cache import Store
from manifests.identity import dialog_key, pair_key, stack_keys, text_key
from manifests.schema import Session
from manifests.views import View
from pipeline.training.data import SessionFeatures
from pipeline.training.errors import MissingFeaturesError

_ASK = "dialogs = true in the spec (--set dialogs=true), and windows for the last turns alone"


def view_features(
    features: SessionFeatures, store: Store, view: View, concatenated: bool = False, dialogs: bool = False
) -> SessionFeatures:
    """Apply ``view`` to ``features``: fewer sessions, or only the last turns of each session (with the same targets).

    ``concatenated``: for a model that reads all captions as one query. Its query of the last turns alone is a separate
    row in the store; a session without it is skipped, with a reason. ``dialogs``: for a model whose one query is the
    chat of all images and texts, a separate row too. Raises MissingFeaturesError if no session is left.
    """
    if view.turns is not None:
        features = features.subset(np.flatnonzero(features.lengths.cpu().numpy() == view.turns).tolist())
        if not len(features):
            raise MissingFeaturesError(f"no session with features has {view.turns} turns: choose another view")
    turns = view.last or features.turns
    last = f"last {view.last} " if view.last else ""
    if dialogs:
        rows = _with_rows(features, store, lambda s: s.last(turns), chat_key, f"{last}turns as one chat", _ASK)
        features = replace(rows, dialogs=True)
    if view.last is None or int(features.lengths.max()) <= view.last:
        return features
    if concatenated and not dialogs:
        ask = f"windows = [{view.last}] in the spec (--set windows=[{view.last}])"
        what = f"{last}turns' captions as one text"
        features = _with_rows(features, store, lambda s: s.last(turns), captions_key, what, ask)
    return _last_turns(features, view.last)


def first_turns(features: SessionFeatures, store: Store, turns: int) -> SessionFeatures:
    """Return the features with the first ``turns`` turns of each session as its one query (``cat_rows``).

    A session without this row is skipped. Raises MissingFeaturesError if no session has it.
    """
    what = f"first {turns} turns' captions as one text"
    ask = "prefixes = true in the spec (--set prefixes=true)"
    return _with_rows(features, store, lambda s: s.first(turns), captions_key, what, ask)


def _last_turns(features: SessionFeatures, turns: int) -> SessionFeatures:
    """Keep the last ``turns`` turns; shorter sessions are kept whole, and padded with their last turn."""
    lengths = features.lengths.clamp(max=turns)
    first = features.lengths - lengths
    steps = torch.arange(min(turns, features.turns), device=features.device)
    position = first[:, None] + torch.minimum(steps, lengths[:, None] - 1)
    tables = {name: getattr(features, name, None) for name in ("query_rows", "target_rows", "text_rows")}
    moved = {name: rows.gather(1, position) for name, rows in tables.items() if rows is not None}
    return replace(features, lengths=lengths, **moved)


def _with_rows(
    features: SessionFeatures,
    store: Store,
    cut: Callable[[Session], Session],
    key: Callable[[Session, dict[str, bytes]], bytes],
    what: str,
    ask: str,
) -> SessionFeatures:
    """Set ``cat_rows`` to the rows of ``key`` for the turns that ``cut`` keeps; skip sessions without such a row.

    ``what``: the row in messages. ``ask``: what the spec needs so that `extract` makes these rows.
    """
    catalogue = store.catalogue()
    rows = store.find("query", stack_keys(key(cut(session), catalogue) for session in features.sessions))
    there = np.flatnonzero(rows >= 0)
    missing = [features.sessions[i] for i in np.flatnonzero(rows < 0)]
    if not len(there):
        raise MissingFeaturesError(f"{store.path}: no query row for the {what}; run `extract` with {ask}")
    used, found = np.unique(rows[there], return_inverse=True)
    kept = features.subset(there.tolist())
    added = torch.from_numpy(store.gather("query", used).astype(np.float32)).to(features.device)
    places = torch.from_numpy(found.reshape(-1).astype(np.int64)).to(features.device)
    queries, cat_rows = torch.cat([features.queries, added]), len(features.queries) + places
    skipped = (*features.skipped, *(s.id for s in missing))
    reasons = (*features.reasons, *(f"session {s.id!r}: no query row for its {what}" for s in missing))
    return replace(kept, queries=queries, cat_rows=cat_rows, has_concatenated=True, skipped=skipped, reasons=reasons)


def captions_key(session: Session, catalogue: dict[str, bytes]) -> bytes:
    """Return the key of the query of all captions as one text."""
    return pair_key(catalogue[session.turns[0].reference], text_key(session.text))


def chat_key(session: Session, catalogue: dict[str, bytes]) -> bytes:
    """Return the key of the query of the whole dialog as one chat."""
    return dialog_key([pair_key(catalogue[turn.reference], text_key(turn.text)) for turn in session.turns])
