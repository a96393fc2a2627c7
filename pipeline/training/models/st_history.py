"""ST + history: the single-turn model on the whole dialog, all images and texts as one chat."""

from __future__ import annotations

from torch import Tensor

from pipeline.training.models.base import MemoryModel


class History(MemoryModel):
    """f'_qry = f_qry([I_1, U_1, ..., I_N, U_N]), a row of a multimodal LLM's store (``dialogs = true`` in the spec)."""

    title = "ST + history as one chat"
    trainable = False
    reads = "concatenated"
    dialogs = True

    def _forward(self, queries: Tensor, lengths: Tensor) -> Tensor:
        return queries
