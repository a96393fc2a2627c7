"""Text tower features of each turn's feedback, added to the composed features of sessions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from cache import Store
from manifests.identity import stack_keys, text_key
from pipeline.training.data import SessionFeatures
from pipeline.training.errors import FeatureError


def add_texts(features: SessionFeatures, backbone: Store) -> SessionFeatures:
    """Return ``features`` with ``texts`` and ``text_rows`` from the table ``text`` of the extractor's store.

    Raises FeatureError for a missing table, a missing text of a session, or NaN or infinite values.
    """
    if "text" not in backbone.tables:
        raise FeatureError(
            f"{backbone.path}: there are no text rows (tables: {', '.join(backbone.tables)}); "
            "set the models' option texts to 0, or use an extractor with a text tower"
        )
    padded = [
        [text_key(s.turns[min(n, len(s.turns) - 1)].text) for n in range(features.turns)] for s in features.sessions
    ]
    found = backbone.find("text", stack_keys(key for keys in padded for key in keys))
    if (found < 0).any():
        session = features.sessions[int(np.flatnonzero(found < 0)[0]) // features.turns]
        raise FeatureError(
            f"{backbone.path}: no text row for a turn of session {session.id!r}; run `extract` on this spec again"
        )
    used, places = np.unique(found, return_inverse=True)
    texts = np.asarray(backbone.gather("text", used), dtype=np.float32)
    if not np.isfinite(texts).all():
        raise FeatureError(f"{backbone.path}: table 'text' holds NaN or infinite values; verify the store")
    rows = torch.from_numpy(places.reshape(len(features), features.turns).astype(np.int64))
    return replace(features, texts=torch.from_numpy(texts).to(features.device), text_rows=rows.to(features.device))
