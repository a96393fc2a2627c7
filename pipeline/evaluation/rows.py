"""Feature rows at unit length."""

from __future__ import annotations

from typing import Any

import numpy as np

_AT_ONCE = 1 << 14  # rows held in double precision


def unit_rows(rows: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Return rows [..., D] divided by their norms; zero rows stay zero. Norms in double avoid over- and underflow."""
    flat = rows.reshape(-1, rows.shape[-1])
    out = np.empty(flat.shape, dtype=dtype)
    for start in range(0, len(flat), _AT_ONCE):
        part = flat[start : start + _AT_ONCE].astype(np.float64)
        norms = np.sqrt(np.einsum("nd,nd->n", part, part))[:, None]
        out[start : start + _AT_ONCE] = np.divide(part, norms, out=part, where=norms > 0)
    return out.reshape(rows.shape)
