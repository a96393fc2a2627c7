"""Upper bound of the memory of an extraction in one process and its decoding processes, as `plan` prints it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image

from manifests.archives import MAX_BYTES
from pipeline.extraction.decoding import IMAGES_A_WORKER, JOBS_AHEAD
from pipeline.extraction.engine import BATCHES_AHEAD
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.images import MAX_PIXELS

BYTES_A_PIXEL = 26  # in decoding, of the worst kind of image (JPEG 2000 with alpha); measured, and checked by a test
PROGRAM = 1_000_000_000  # Python, torch, transformers and their buffers
PROCESS = 400_000_000  # the same in a decoding process; less where it is forked and shares them
BYTES_AN_IMAGE = 1000  # of the catalog
_SIDE = 512  # of the image whose prepared size is taken


@dataclass(frozen=True)
class MemoryBound:
    """Bytes of one job: ``decoding`` if each of ``processes`` has an image of the largest accepted size and file at once;
    ``model``: its weights; ``waiting``: prepared images; ``catalog``; ``program``. A batch's activations are not included.
    """

    processes: int
    decoding: int
    model: int
    waiting: int
    catalog: int
    program: int

    @property
    def bytes(self) -> int:
        return self.decoding + self.model + self.waiting + self.catalog + self.program

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.bytes}

    def text(self) -> str:
        rest = (
            ("model", self.model),
            ("prepared images", self.waiting),
            ("catalog", self.catalog),
            ("program", self.program),
        )
        parts = [f"decoding in {self.processes} process(es) {self.decoding / 1e9:,.1f}"]
        parts += [f"{name} {size / 1e9:,.1f}" for name, size in rest if size >= 5e7]
        return (
            f"memory  at most {self.bytes / 1e9:,.1f} GB, and a batch's activations: {', '.join(parts)}; an image has at most "
            f"{MAX_PIXELS:,} pixels, a file {MAX_BYTES / 1e9:.1f} GB"
        )


def memory_of(extractor: Extractor, images: int, catalog: int, workers: int, batch_size: int) -> MemoryBound:
    """Return the bound for ``images`` images to read, of ``catalog`` in all, with ``workers`` decoding processes."""
    processes = max(1, min(workers, images // IMAGES_A_WORKER)) if images else 0
    ahead = (BATCHES_AHEAD + 2) * batch_size + processes * JOBS_AHEAD * extractor.images_per_job
    decoding = processes * (MAX_PIXELS * BYTES_A_PIXEL + MAX_BYTES)
    waiting = min(ahead, images) * _prepared_bytes(extractor) if images else 0
    return MemoryBound(
        processes, decoding, _weights(extractor), waiting, catalog * BYTES_AN_IMAGE, PROGRAM + processes * PROCESS
    )


def _prepared_bytes(extractor: Extractor) -> int:
    """Return the bytes of a prepared image, as most have it."""
    found = extractor.prepare(Image.new("RGB", (_SIDE, _SIDE)))
    return sum(getattr(part, "nbytes", 0) for part in (found.values() if isinstance(found, dict) else [found]))


def _weights(extractor: Extractor) -> int:
    """Return the bytes of the networks, and of the float32 ones with which a lower precision is compared."""
    if extractor.device.type != "cpu":
        return 0
    networks = [value for value in vars(extractor).values() if isinstance(value, torch.nn.Module)]
    parameters = {id(p): p for network in networks for p in (*network.parameters(), *network.buffers())}.values()
    reference = 4 if extractor.compute != torch.float32 else 0
    return sum(p.nbytes + reference * p.numel() for p in parameters)
