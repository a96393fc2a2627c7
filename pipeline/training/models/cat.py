"""ST + cat(all captions): the single-turn model on one long caption (paper section 4.3)."""

from __future__ import annotations

from torch import Tensor

from pipeline.training.models.base import MemoryModel


class Concatenated(MemoryModel):
    """f'_qry = f_qry(first reference image, all captions as one text), stored as a separate row."""

    title = "ST + cat(all captions)"
    trainable = False
    reads = "concatenated"

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        return queries
