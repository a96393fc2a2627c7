"""clip-retrieval's inference (its reader, mapper, writer and runner) on the same images and the same CLIP folder.

It cannot be in an extra: clip-retrieval 2.45 requires numpy < 2 and pyarrow < 16, this project numpy 2. It runs where it
was installed without its requirements (BENCHMARKS.md, "Stage 1", has the lines); elsewhere ``absent`` says why not.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

PARTS = ("clip_retrieval.clip_inference.runner", "all_clip.hf_clip")


def absent() -> str:
    for name in PARTS:
        try:
            importlib.import_module(name)
        except Exception as error:  # of any of its packages
            return f"{name} cannot be imported: {' '.join(f'{type(error).__name__}: {error}'.split())[:160]}"
    return ""


class ClipRetrieval:
    """``model``: a CLIP folder of transformers. ``images``: the first of ``folder`` that are used.

    Two things are not its own: the model is loaded without its warm-up, which needs texts of 77 tokens, and the features
    are taken from the output object that transformers 5 returns.
    """

    def __init__(self, model: str, folder: Path, images: int, out: Path, batch_size: int, workers: int, device: str):
        from all_clip.hf_clip import load_hf_clip
        from clip_retrieval.clip_inference.mapper import ClipMapper

        self.folder, self.images, self.out, self.batch_size, self.workers = folder, images, out, batch_size, workers
        self.runs = 0
        wrapped, self.preprocess, self.tokenizer = load_hf_clip(model, False, device, None)
        self.mapper = ClipMapper.__new__(ClipMapper)
        self.mapper.enable_image, self.mapper.enable_text, self.mapper.enable_metadata = True, False, False
        self.mapper.device = device
        self.mapper.model_img = lambda pixels: _features(wrapped.encode_image(pixels))

    def run(self) -> dict[str, float]:
        """Read, encode and write all images; the rate leaves out loading the model, as the engine's does."""
        from clip_retrieval.clip_inference.reader import FilesReader
        from clip_retrieval.clip_inference.runner import Runner
        from clip_retrieval.clip_inference.writer import NumpyWriter

        self.runs += 1
        out = str(self.out / f"run{self.runs}")

        def reader(sampler: Any) -> Any:
            first = lambda keys: keys[: self.images]  # noqa: E731
            how = (self.preprocess, self.tokenizer, self.folder, self.batch_size, self.workers)
            return FilesReader(first, *how, enable_text=False)

        runner = Runner(reader, lambda: self.mapper, lambda n: NumpyWriter(n, out, False, True, False, 1), _Silent, 1)
        began = time.perf_counter()
        runner(0)
        return {"rate": self.images / (time.perf_counter() - began)}


class _Silent:
    """Its logger without the process that writes statistics."""

    def __init__(self, partition: int):
        pass

    def start(self) -> None:
        pass

    def end(self) -> None:
        pass

    def __call__(self, stats: dict[str, Any]) -> None:
        pass


def _features(output: Any) -> Any:
    return getattr(output, "pooler_output", output)
