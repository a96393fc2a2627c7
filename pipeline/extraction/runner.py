"""Prepared batches through the model: halved when memory is short, and a bad item never costs its neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from manifests.identity import stack_keys
from pipeline.device import free_memory, is_out_of_memory
from pipeline.extraction.extractors.base import Extractor, ExtractorError
from pipeline.extraction.meter import Meter
from pipeline.extraction.prepare import ItemFailure, one_line
from pipeline.extraction.work import Item


@dataclass
class Outcome:
    """A task's rows in plan order, less the failed ones. ``seconds``: the model's time. May be partial when stopped."""

    table: str
    # (positions in the task, content keys, features [n, D]) of each batch; appended whole, so an interrupt cannot split it
    pieces: list[tuple[list[int], list[bytes], np.ndarray]] = field(default_factory=list)
    failures: list[ItemFailure] = field(default_factory=list)
    seconds: float = 0.0

    def __len__(self) -> int:
        return sum(len(positions) for positions, _, _ in self.pieces)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys uint8 [n, 16], features [n, D])."""
        order = np.argsort([p for positions, _, _ in self.pieces for p in positions], kind="stable")
        keys = stack_keys(key for _, keys, _ in self.pieces for key in keys)
        return keys[order], np.concatenate([rows for _, _, rows in self.pieces])[order]


class Runner:
    """Runs batches through the model; a batch that does not fit is halved, and so are those after it."""

    def __init__(self, extractor: Extractor, batch_size: int, meter: Meter):
        self.extractor, self.limit, self.meter = extractor, batch_size, meter

    def run(self, batch: list[tuple[int, Item, Any]], outcome: Outcome) -> None:
        """Add the batch's rows and failures to ``outcome``."""
        before = self.meter.seconds["model"]
        start = 0
        while start < len(batch):
            piece = batch[start : start + self.limit]
            with self.meter.time("model"):
                rows, error = self._try(piece, outcome.table)
            if rows is None and error is not None and is_out_of_memory(error) and len(piece) > 1:
                self.limit = max(1, len(piece) // 2)
                free_memory(self.extractor.device)
                continue
            if rows is None and error is not None and len(piece) > 1:
                self._one_by_one(piece, error, outcome)
            else:
                self._keep(piece, rows, error, outcome)
            start += len(piece)
        outcome.seconds += self.meter.seconds["model"] - before

    def _try(self, piece: list[tuple[int, Item, Any]], table: str) -> tuple[np.ndarray | None, Exception | None]:
        parts = [p for _, _, p in piece]
        first = [p[0] for p in parts]
        try:
            if table == "query":
                rows = self.extractor.encode_pairs(first, [p[1] for p in parts])
            else:
                rows = self.extractor.encode_texts(first) if table == "text" else self.extractor.encode_images(first)
        except (ExtractorError, torch.AcceleratorError):
            raise  # a broken extractor or a lost device fails every item after it too
        except Exception as error:
            error.__traceback__ = None  # its frames hold the batch's tensors, and memory may be what is short
            return None, error
        if rows.shape[1] != self.extractor.dim(table):
            raise ExtractorError(
                f"extractor {self.extractor.name!r} gave rows of {rows.shape[1]} for table '{table}', which has "
                f"dim {self.extractor.dim(table)}"
            )
        return rows, None

    def _one_by_one(self, piece: list[tuple[int, Item, Any]], error: Exception, outcome: Outcome) -> None:
        """The model refused a batch: find the items at fault. When it is all of them, the model is, and that is raised."""
        alone = Outcome(outcome.table)
        for one in piece:
            with self.meter.time("model"):
                rows, own = self._try([one], outcome.table)
            self._keep([one], rows, own, alone)
        if len(alone.failures) == len(piece):
            raise ExtractorError(
                f"extractor {self.extractor.name!r} failed on every item of a batch: {one_line(error)}"
            ) from error
        outcome.pieces.extend(alone.pieces)
        outcome.failures.extend(alone.failures)

    def _keep(
        self, piece: list[tuple[int, Item, Any]], rows: np.ndarray | None, error: Exception | None, outcome: Outcome
    ) -> None:
        if rows is None:
            assert error is not None
            reason = "out of memory, even alone" if is_out_of_memory(error) else one_line(error)
            outcome.failures.append(ItemFailure(piece[0][1], "encode", reason))
            self.meter.failed += 1
            return
        good = np.isfinite(rows).all(axis=1)
        why = getattr(self.extractor, "nonfinite", "the model gave NaN or Inf")
        hint = "" if self.extractor.options.dtype == "float32" else f" in {self.extractor.options.dtype}: try float32"
        kept = [one for one, fine in zip(piece, good, strict=True) if fine]
        outcome.failures.extend(
            ItemFailure(one[1], "encode", f"{why}{hint}")
            for one, fine in zip(piece, good, strict=True)
            if not fine
        )
        if kept:
            positions, keys = [one[0] for one in kept], [one[1].key for one in kept]
            outcome.pieces.append((positions, keys, rows if len(kept) == len(piece) else rows[good]))
        self.meter.done += int(good.sum())
        self.meter.failed += int((~good).sum())
