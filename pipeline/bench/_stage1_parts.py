"""Parts that `bench extract` measures in turn: components of stage 1, the whole of it, and the baselines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from cache import Store
from pipeline.bench._subjects import gemm_step
from pipeline.bench._world import dataset_of
from pipeline.extraction.decoding import IMAGES_A_WORKER, Decoder
from pipeline.extraction.plan import plan_extraction
from pipeline.extraction.precision import FORMS, take_form
from pipeline.extraction.prepare import decode_ahead, prepare
from pipeline.extraction.progress import Meter
from pipeline.extraction.run import extract
from pipeline.extraction.work import ItemFailure, ShardTask, batches_of, jobs_of


class Parts:
    """Each part returns at least {"rate": images per second}."""

    def __init__(self, root: Path, dataset: Any, extractor: Any, batch_size: int, workers: int, shard_rows: int):
        self.root, self.dataset, self.extractor = root, dataset, extractor
        self.batch_size, self.workers, self.shard_rows = batch_size, workers, shard_rows
        self.items = plan_extraction(dataset, extractor, None).tables["image"].todo
        self.images = dataset.images_root.resolve()
        self.task = ShardTask("image", self.items)
        self.runs = 0

    def synthetic(self) -> Any:
        parts = prepare(self.extractor, self.items[: self.batch_size], self.images, Meter())
        return self.extractor.stack([part[0] for part in parts])

    def model_ceiling(self) -> dict[str, float]:
        """Run the model repeatedly on one synthetic batch, for as many rows as images; no copy waits."""
        batch = self.synthetic()
        passes = max(1, len(self.items) // len(batch))
        began, flight = time.perf_counter(), []
        for _ in range(passes):
            flight.append(self.extractor.begin("image", batch))
            if len(flight) > 2:
                flight.pop(0).numpy()
        for rows in flight:
            rows.numpy()
        return rate(passes * len(batch), began)

    def variants(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Return a part per compiled form (`extract --form`): the model's ceiling, "least_cosine" to the plain rows."""
        plain = self.extractor.begin("image", self.synthetic()).numpy().astype("float64")

        def part(form: str) -> dict[str, float]:
            undo = take_form(self.extractor, form)
            try:
                found = self.extractor.begin("image", self.synthetic()).numpy().astype("float64")
                norms = (plain**2).sum(1) ** 0.5 * (found**2).sum(1) ** 0.5
                return self.model_ceiling() | {"least_cosine": float(((plain * found).sum(1) / norms).min())}
            finally:
                undo()

        for form in FORMS[1:]:
            part(form)
        return {form: partial(part, form) for form in FORMS[1:]}

    def decode_ceiling(self, workers: int = 0) -> dict[str, float]:
        """Read, decode, resize and stack only, with as many processes as the engine has, or ``workers``.

        The rate is of the images after each process's first job, so that it leaves out the start of the processes.
        """
        workers = workers or self.workers
        jobs = list(jobs_of([self.task], self.extractor.images_per_job))
        items = (self.items[job.start : job.stop] for job in jobs)
        with Decoder(self.extractor, self.images, workers) as decoder:
            decoded = decoder.run(items, workers * IMAGES_A_WORKER, Meter())
            first = list(islice(decoded, min(workers, len(jobs) - 1)))
            began = time.perf_counter()
            ready = (
                decode_ahead(self.extractor, self.items[job.start : job.stop], found)
                for job, found in zip(jobs, chain(first, decoded), strict=True)
            )
            parts = ([p if isinstance(p, ItemFailure) else [p] for p in found] for found in ready)
            batches = batches_of([self.task], zip(jobs, parts, strict=True), self.batch_size, self.extractor.stack)
            rows = sum(len(batch) for batch in batches)
        return rate(rows - sum(map(len, first)), began)

    def gemm_floor(self) -> dict[str, float]:
        """Images per second if the image tower's operations ran at the speed of one large product (same threads, dtype)."""
        batch = self.synthetic()
        with FlopCounterMode(display=False) as counter:
            self.extractor.begin("image", batch).numpy()
        product, operations = gemm_step(2048, 1024, self.extractor.device, self.extractor.compute)
        timer = Timer("step()", globals={"step": product}, num_threads=torch.get_num_threads())
        rate = operations / timer.blocked_autorange(min_run_time=0.5).median
        flops = counter.get_total_flops() / len(batch)
        return {"rate": rate / flops, "gflop": flops / 1e9, "gflops": rate / 1e9}

    def side_by_side(self) -> dict[str, float]:
        """Run model and decoding concurrently but unconnected: the limit of overlap when they share cores."""
        began, decoding = time.perf_counter(), threading.Thread(target=self.decode_ceiling)
        decoding.start()
        self.model_ceiling()
        decoding.join()
        return rate(len(self.items), began)

    def engine(
        self, dataset: Any = None, workers: int | None = None, batch_size: int = 0, cluster: Any = None
    ) -> dict[str, Any]:
        """Run a whole extraction into a new store; the rate excludes the preceding hashing of the files."""
        self.runs += 1
        dataset = dataset or self.dataset
        how: dict[str, Any] = {"batch_size": batch_size or self.batch_size, "shard_rows": self.shard_rows}
        how |= {"workers": self.workers if workers is None else workers, "cluster": cluster, "progress": "silent"}
        report = extract(dataset, self.extractor, self.root / f"stores{self.runs}", **how)
        work = report.seconds["work"]
        busy = {f"busy {stage}": seconds / work for stage, seconds in report.busy.items()}
        return {"rate": len(dataset.images) / work, **busy, "path": report.path}

    def bad_images(self, folder: Path, bad: set[str]) -> dict[str, float]:
        """Extract the corrupted copy; ``exact``: the ledger names exactly the corrupted files."""
        found = self.engine(dataset_of(folder, len(self.dataset.images)))
        failed = {f.item for f in Store.open(found["path"]).failures()}
        return {"rate": found["rate"], "exact": float(failed == bad), "bad": float(len(bad))}

    def naive(self, pairs: int) -> dict[str, float]:
        """Run the usual script: a DataLoader over (image, text) pairs, then the model; each pair encodes its image."""
        extractor, images = self.extractor, self.images
        requests = [item.file for item in self.items for _ in range(pairs)]

        class Pairs(Dataset):  # type: ignore[type-arg]
            def __len__(self) -> int:
                return len(requests)

            def __getitem__(self, at: int) -> torch.Tensor:
                with Pillow.open(images / requests[at]) as image:
                    found = extractor.processor(image.convert("RGB"), return_tensors="np")
                    return torch.from_numpy(found["pixel_values"][0])

        loader = DataLoader(Pairs(), batch_size=self.batch_size, num_workers=self.workers)
        began, rows = time.perf_counter(), []
        with torch.inference_mode():
            for pixels in loader:
                pixels = pixels.to(extractor.device, extractor.compute)
                features = extractor.model.get_image_features(pixel_values=pixels)
                features = features if isinstance(features, torch.Tensor) else features.pooler_output
                rows.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu())
        return rate(sum(map(len, rows)), began)


def rate(rows: int, began: float) -> dict[str, float]:
    return {"rate": rows / (time.perf_counter() - began)}
