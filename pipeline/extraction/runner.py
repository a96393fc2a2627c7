"""Execution of prepared batches; a batch is halved if memory runs out, and a bad item does not affect its neighbors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from manifests.errors import most_frequent
from manifests.identity import stack_keys
from pipeline.core.device import free_memory, is_out_of_memory
from pipeline.extraction.extractors.base import Extractor, ExtractorError
from pipeline.extraction.images import one_line
from pipeline.extraction.progress import Meter
from pipeline.extraction.tokens import Tokens
from pipeline.extraction.transfer import PendingRows
from pipeline.extraction.work import ForwardBatch, Item, ItemFailure

IN_FLIGHT = 2  # unfinished batches on a GPU; the CPU computes each at once


@dataclass
class Outcome:
    """Rows of a task in plan order, without failed ones. ``seconds``: model time. Incomplete if the job was stopped."""

    table: str
    task: int = -1
    # (positions in the task, content keys, features [n, D]) per batch; one append, so an interrupt cannot split it
    pieces: list[tuple[list[int], list[bytes], np.ndarray]] = field(default_factory=list)
    failures: list[ItemFailure] = field(default_factory=list)
    long: list[Item] = field(default_factory=list)  # items with a truncated text
    noted: list[tuple[Item, str]] = field(default_factory=list)  # items with a remark on their image's decoding
    seconds: float = 0.0
    whole: bool = False  # each item of the task has a row or a failure

    def __len__(self) -> int:
        return sum(len(positions) for positions, _, _ in self.pieces)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (keys uint8 [n, 16], features [n, D])."""
        order = np.argsort([p for positions, _, _ in self.pieces for p in positions], kind="stable")
        keys = stack_keys(key for _, keys, _ in self.pieces for key in keys)
        return keys[order], np.concatenate([rows for _, _, rows in self.pieces])[order]


class Runner:
    """Run batches through the model; after one that does not fit in memory, batches are halved.

    ``push`` starts a batch on the device and collects the oldest one beyond IN_FLIGHT; ``finished`` yields the outcomes
    with all batches collected.
    """

    def __init__(self, extractor: Extractor, batch_size: int, meter: Meter):
        self.extractor, self.limit, self.meter = extractor, batch_size, meter
        self._depth = IN_FLIGHT if extractor.device.type == "cuda" else 0
        self._flight: deque[tuple[ForwardBatch, Outcome, PendingRows]] = deque()
        self._ended: deque[Outcome] = deque()  # outcomes with all batches pushed

    def push(self, batch: ForwardBatch, outcome: Outcome) -> None:
        """Start a batch; its rows and failures are added to ``outcome`` now or when the device is done."""
        before = self.meter.seconds["model"]
        outcome.long.extend(self._long(batch))
        noted = self.extractor.noted
        outcome.noted.extend((i, noted.pop(i.image)) for i in batch.items if i.image in noted)
        start = 0
        while start < len(batch):
            piece = batch.part(start, start + self.limit)
            with self.meter.time("model"):
                rows, error = self._begin(piece, outcome.table)
            if rows is not None:
                self._flight.append((piece, outcome, rows))
            elif error is not None and is_out_of_memory(error) and len(piece) > 1:
                self._take(0)  # batches in flight use memory too
                self.limit = max(1, len(piece) // 2)
                free_memory(self.extractor.device)
                continue
            elif error is not None:
                self._one_by_one(piece, error, outcome)
            self._take(self._depth)
            start += len(piece)
        outcome.seconds += self.meter.seconds["model"] - before
        if batch.last:
            self._ended.append(outcome)

    def finished(self, wait: bool = False) -> Iterator[Outcome]:
        """Yield the complete outcomes in order, each once. ``wait``: for all batches on the device."""
        if wait:
            self._take(0)
        while self._ended and all(outcome is not self._ended[0] for _, outcome, _ in self._flight):
            outcome = self._ended.popleft()
            outcome.whole = True
            yield outcome

    def _long(self, batch: ForwardBatch) -> list[Item]:
        """Return the members with a truncated text or caption."""
        tokens = getattr(self.extractor, "tokens", None)
        if not isinstance(tokens, Tokens):
            return []
        texts = [{i.text, i.caption, *(turn.text for turn in i.turns)} - {None} for i in batch.items]
        found = tokens.take_truncated([text for of_item in texts for text in of_item if text is not None])
        return [item for item, of_item in zip(batch.items, texts, strict=True) if found & of_item]

    def _take(self, depth: int) -> None:
        """Collect the oldest batches until at most ``depth`` are in flight."""
        while len(self._flight) > depth:
            piece, outcome, rows = self._flight[0]
            with self.meter.time("model"):
                found = rows.numpy()
            self._flight.popleft()  # first: an interrupt in between loses the batch instead of keeping it twice
            self._keep(piece, found, outcome)

    def _begin(self, piece: ForwardBatch, table: str) -> tuple[PendingRows | None, Exception | None]:
        try:
            rows = self.extractor.begin(table, *piece.parts)
        except (ExtractorError, torch.AcceleratorError):
            raise  # a broken extractor or a lost device fails all later items too
        except Exception as error:
            error.__traceback__ = None  # its frames keep the batch's tensors in memory
            return None, error
        return rows, None

    def _one_by_one(self, piece: ForwardBatch, error: Exception, outcome: Outcome) -> None:
        """Find the items that cause the error of a failed batch; raise the error if all items fail."""
        if len(piece) == 1:
            self._fail(piece, error, outcome)
            return
        alone = Outcome(outcome.table)
        for n in range(len(piece)):
            one = piece.part(n, n + 1)
            with self.meter.time("model"):
                rows, own = self._begin(one, outcome.table)
                found = rows.numpy() if rows is not None else None
            if found is not None:
                self._keep(one, found, alone)
            else:
                assert own is not None
                self._fail(one, own, alone)
        if len(alone.failures) == len(piece):
            why, hint = most_frequent(f.reason for f in alone.failures), _several_sizes(piece)
            what = f"failed on every item of a batch ({why}){hint}"
            raise ExtractorError(f"extractor {self.extractor.name!r} {what}") from error
        outcome.pieces.extend(alone.pieces)
        outcome.failures.extend(alone.failures)

    def _fail(self, piece: ForwardBatch, error: Exception, outcome: Outcome) -> None:
        reason = "out of memory, even alone" if is_out_of_memory(error) else one_line(error)
        outcome.failures.append(ItemFailure(piece.items[0], "encode", reason))
        self.meter.failed += 1

    def _keep(self, piece: ForwardBatch, rows: np.ndarray, outcome: Outcome) -> None:
        """Add the finite rows to the outcome, and the others as failures."""
        wanted = self.extractor.dim(outcome.table)
        if rows.shape[1] != wanted:
            what = f"rows of {rows.shape[1]} for table '{outcome.table}', which has dim {wanted}"
            raise ExtractorError(f"extractor {self.extractor.name!r} gave {what}")
        good = np.isfinite(rows).all(axis=1)
        why = getattr(self.extractor, "nonfinite", "the model gave NaN or Inf")
        hint = "" if self.extractor.options.dtype == "float32" else f" in {self.extractor.options.dtype}: try float32"
        outcome.failures.extend(ItemFailure(piece.items[n], "encode", f"{why}{hint}") for n in np.flatnonzero(~good))
        if good.any():
            positions = [p for p, fine in zip(piece.positions, good, strict=True) if fine]
            keys = [item.key for item, fine in zip(piece.items, good, strict=True) if fine]
            outcome.pieces.append((positions, keys, rows if good.all() else rows[good]))
        self.meter.done += int(good.sum())
        self.meter.failed += int((~good).sum())


def _several_sizes(batch: ForwardBatch) -> str:
    """Return a hint if the processor made images of several sizes, which many models refuse; "" otherwise."""
    arrays = (array for part in batch.parts for p in part if isinstance(p, dict) for array in p.values())
    shapes = sorted({"x".join(map(str, array.shape)) for array in arrays})
    sizes = f"images of several sizes ({', '.join(shapes[:2])})"
    fix = "let it crop them (do_center_crop and crop_size in preprocessor_config.json)"
    return f"; the model's processor makes {sizes}: {fix}" if len(shapes) > 1 else ""
