"""Stage 1 against its own ceilings: model alone, decoding alone, both overlapped; with bad images, a cluster, a naive loop.

Everything is measured in one run, in rounds of all parts one after another, and every figure is the median of the
rounds' figures (ratios: of the rounds' ratios), so that a busy machine slows all parts alike.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.bench._world import corrupted, dataset_of, draw_images, save_small_clip


def run(
    images: int = 384, rounds: int = 3, batch_size: int = 32, workers: int = 0, threads: int = 1, width: int = 320,
    layers: int = 8, model: str = "", folder: str = "", device: str = "auto", precision: str = "fp32",
    corrupt: bool = True, naive: bool = True, pairs: int = 3, dask: bool = False, shard_rows: int = 128,
    scratch: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Rates in images a second.

    ``model``: a CLIP-like folder or hub id; otherwise a ViT-/32 of ``width`` and ``layers`` with random weights.
    ``folder``: real images, of which the first ``images`` are used; otherwise they are drawn. ``workers``: decoding
    threads, 0 for the CPUs that the model leaves. ``threads``: of the model on a CPU. ``pairs``: (image, text) requests
    an image for the naive loop, which encodes the image of each. ``dask``: also one worker of a local cluster.
    """
    import torch

    from manifests.schema import Component, RunSpec
    from pipeline.extraction.extractors import load_extractor
    from pipeline.extraction.precision import PRECISIONS
    from pipeline.extraction.probe import default_workers

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=scratch or None) as place, ExitStack() as stack:
        root = Path(place)
        chosen = model or str(save_small_clip(root / "model", width, layers))
        source = Path(folder) if folder else root / "images"
        if not folder:
            draw_images(source, images)
        component = Component(name="clip", model=chosen, dtype=PRECISIONS[precision])  # type: ignore[call-arg]
        spec = RunSpec(name="bench", dataset=Component(name="jsonl"), extractor=component)
        extractor = load_extractor(spec, device)
        count = workers or default_workers(extractor.device)
        bench = _Bench(root, dataset_of(source, images), extractor, batch_size, count, shard_rows)
        parts: dict[str, Callable[[], dict[str, float]]] = {
            "model": bench.model_ceiling,
            "decode": bench.decode_ceiling,
            "both": bench.side_by_side,
            "engine": bench.engine,
            "one thread": bench.sequential,
        }
        if corrupt:
            bad = stack.enter_context(corrupted(source, root / "bad", images, 0.01))
            parts["1% bad"] = lambda: bench.bad_images(root / "bad", images, bad)
        if naive:
            parts["naive"] = lambda: bench.naive(pairs)
            parts["one by one"] = bench.one_by_one
        if dask:
            from pipeline.extraction.distributed import crew_for

            crew = stack.enter_context(crew_for(spec, device, local=1))
            parts["dask"] = lambda: bench.engine(crew=crew)
        bench.engine()  # starts threads, fills the page cache
        found: dict[str, list[dict[str, float]]] = {name: [] for name in parts}
        for _ in range(rounds):
            for name, part in parts.items():
                found[name].append(part())
    return _figures(found, pairs, count, extractor.device.type)


class _Bench:
    """The parts that are measured. Each gives at least {"rate": images a second}."""

    def __init__(self, root: Path, dataset: Any, extractor: Any, batch_size: int, workers: int, shard_rows: int):
        from pipeline.extraction.batches import Task, collate_for
        from pipeline.extraction.plan import plan_extraction

        self.root, self.dataset, self.extractor = root, dataset, extractor
        self.batch_size, self.workers, self.shard_rows = batch_size, workers, shard_rows
        self.items = plan_extraction(dataset, extractor, None).tables["image"].todo
        self.images = dataset.images_root.resolve()
        self.task, self.collate = Task("image", self.items), collate_for(extractor.device)
        self.runs = 0

    def model_ceiling(self) -> dict[str, float]:
        """The model on one synthetic batch again and again, as many rows as there are images; no copy waits."""
        from pipeline.extraction.meter import Meter
        from pipeline.extraction.prepare import prepare

        parts = prepare(self.extractor, self.items[: self.batch_size], self.images, Meter())
        batch = self.collate([part[0] for part in parts])
        began, flight = time.perf_counter(), []
        for _ in range(max(1, len(self.items) // len(batch))):
            flight.append(self.extractor.begin("image", batch))
            if len(flight) > 2:
                flight.pop(0).numpy()
        for rows in flight:
            rows.numpy()
        return _rate(max(1, len(self.items) // len(batch)) * len(batch), began)

    def decode_ceiling(self) -> dict[str, float]:
        """Reading, decoding, resizing and stacking alone, by as many threads as the engine has."""
        from pipeline.extraction.ahead import in_order
        from pipeline.extraction.batches import batches_of, jobs_of
        from pipeline.extraction.meter import Meter
        from pipeline.extraction.prepare import prepare

        began, meter = time.perf_counter(), Meter()
        jobs = in_order(
            lambda job: prepare(self.extractor, self.items[job.start : job.stop], self.images, meter),
            jobs_of([self.task]), self.workers, 2 * self.workers,
        )  # fmt: skip
        rows = sum(len(batch) for batch in batches_of([self.task], jobs, self.batch_size, self.collate))
        return _rate(rows, began)

    def side_by_side(self) -> dict[str, float]:
        """Model and decoding at the same time, not connected: what overlap can reach where they share cores."""
        began, decoding = time.perf_counter(), threading.Thread(target=self.decode_ceiling)
        decoding.start()
        self.model_ceiling()
        decoding.join()
        return _rate(len(self.items), began)

    def engine(
        self, dataset: Any = None, workers: int | None = None, batch_size: int = 0, crew: Any = None
    ) -> dict[str, Any]:
        """A whole extraction into a new store; the rate is of its work, without hashing the files beforehand."""
        from pipeline.extraction.run import extract

        self.runs += 1
        dataset = dataset or self.dataset
        report = extract(
            dataset, self.extractor, self.root / f"stores{self.runs}", progress="silent", crew=crew,
            batch_size=batch_size or self.batch_size, workers=self.workers if workers is None else workers,
            shard_rows=self.shard_rows,
        )  # fmt: skip
        work = report.seconds["work"]
        busy = {f"busy {stage}": seconds / work for stage, seconds in report.busy.items()}
        return {"rate": len(dataset.images) / work, **busy, "path": report.path}

    def sequential(self) -> dict[str, float]:
        """The engine's reference: one step after another in one thread."""
        return self.engine(workers=0)

    def one_by_one(self) -> dict[str, float]:
        """Overlapped, but in batches of one image."""
        return self.engine(batch_size=1)

    def bad_images(self, folder: Path, images: int, bad: set[str]) -> dict[str, float]:
        from cache import Store

        found = self.engine(dataset_of(folder, images))
        failed = {f.item for f in Store.open(found["path"]).failures()}
        return {"rate": found["rate"], "exact": float(failed == bad), "bad": float(len(bad))}

    def naive(self, pairs: int) -> dict[str, float]:
        """The usual script: a DataLoader over (image, text) pairs, then the model; an image once for every pair."""
        import torch
        from PIL import Image as Pillow
        from torch.utils.data import DataLoader, Dataset

        extractor, images = self.extractor, self.images
        requests = [item.file for item in self.items for _ in range(pairs)]

        class Pairs(Dataset):  # type: ignore[type-arg]
            def __len__(self) -> int:
                return len(requests)

            def __getitem__(self, at: int) -> torch.Tensor:
                with Pillow.open(images / requests[at]) as image:
                    return torch.from_numpy(extractor.prepare(image.convert("RGB"))["pixel_values"])

        loader = DataLoader(Pairs(), batch_size=self.batch_size, num_workers=self.workers)
        began, rows = time.perf_counter(), []
        with torch.inference_mode():
            for pixels in loader:
                features = extractor.model.get_image_features(
                    pixel_values=pixels.to(extractor.device, extractor.compute)
                )
                features = features if isinstance(features, torch.Tensor) else features.pooler_output
                rows.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu())
        return _rate(sum(map(len, rows)), began)


def _rate(rows: int, began: float) -> dict[str, float]:
    return {"rate": rows / (time.perf_counter() - began)}


def _figures(found: dict[str, list[dict[str, Any]]], pairs: int, workers: int, device: str) -> dict[str, Any]:
    def median(name: str, key: str = "rate") -> float:
        return statistics.median(part[key] for part in found[name])

    def ratio(one: str, *others: str) -> float:
        """Median over the rounds of rate(one) / the lowest rate of the others."""
        rounds: Iterable[tuple[dict[str, Any], ...]] = zip(found[one], *(found[o] for o in others), strict=True)
        return statistics.median(first["rate"] / min(other["rate"] for other in rest) for first, *rest in rounds)

    stages = [key for key in found["engine"][0] if key.startswith("busy ")]
    busy = {stage.removeprefix("busy "): median("engine", stage) for stage in stages}
    figures: dict[str, Any] = {
        "device": device,
        "decoding_threads": workers,
        "images_per_s": {name: median(name) for name in found},
        "busy": busy,
        "verdict": verdict(busy),
        "of_lower_ceiling": ratio("engine", "model", "decode"),
        "of_model_ceiling": ratio("engine", "model"),
        "of_side_by_side": ratio("engine", "both"),
        "gain_of_overlap": ratio("engine", "one thread"),
        "writer_share": busy["write"],
    }
    if "1% bad" in found:
        figures["bad"] = {
            "images": median("1% bad", "bad"),
            "list_is_exact": all(part["exact"] for part in found["1% bad"]),
            "rate_of_clean": ratio("1% bad", "engine"),
        }
    if "naive" in found:
        figures["against_naive"] = {
            "pairs_an_image": pairs,
            "whole": pairs * ratio("engine", "naive"),
            "dedup": float(pairs),
            "loop": ratio("engine", "naive"),
            "batching": ratio("engine", "one by one"),
        }
    if "dask" in found:
        figures["dask_of_local"] = ratio("dask", "engine")
    return figures


def verdict(busy: dict[str, float]) -> str:
    """The stage that is busy for the largest part of the time, as "model-bound", "decode-bound" or "write-bound"."""
    kinds = {"model": "model-bound", "decode": "decode-bound", "write": "write-bound"}
    return kinds[max(kinds, key=lambda stage: busy.get(stage, 0.0))]


def render(figures: dict[str, Any]) -> str:
    rates = figures["images_per_s"]
    lines = [
        f"model alone, synthetic input   {rates['model']:9,.1f} images/s on {figures['device']}",
        f"decoding alone                 {rates['decode']:9,.1f} images/s by {figures['decoding_threads']} threads",
        f"both at once, not connected    {rates['both']:9,.1f} images/s: the machine's own limit, where they share cores",
        f"extraction, overlapped         {rates['engine']:9,.1f} images/s: {figures['of_lower_ceiling']:.2f}x the lower "
        f"ceiling, {figures['of_side_by_side']:.2f}x both at once; {figures['gain_of_overlap']:.2f}x one thread",
        f"busy  {', '.join(f'{stage} {100 * share:.1f}%' for stage, share in figures['busy'].items())}",
        f"verdict: {figures['verdict']}; writer and integrity {100 * figures['writer_share']:.1f}% of the wall time",
    ]
    if bad := figures.get("bad"):
        exact = "exact" if bad["list_is_exact"] else "WRONG"
        lines.append(f"with {bad['images']:.0f} bad images        {rates['1% bad']:9,.1f} images/s: "
                     f"{bad['rate_of_clean']:.3f}x the clean run; the list of failures is {exact}")  # fmt: skip
    if naive := figures.get("against_naive"):
        lines.append(
            f"naive loop (own, DataLoader)   {rates['naive']:9,.1f} images/s; for {naive['pairs_an_image']} pairs an image "
            f"ours is {naive['whole']:.1f}x: dedup {naive['dedup']:.1f}x, the rest {naive['loop']:.2f}x; batching alone, "
            f"against batches of one, {naive['batching']:.2f}x"
        )
    if "dask_of_local" in figures:
        lines.append(
            f"one Dask worker                {rates['dask']:9,.1f} images/s: {figures['dask_of_local']:.3f}x local"
        )
    return "\n".join(lines)
