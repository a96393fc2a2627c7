"""Stage 1 throughput against its upper bounds; optionally bad images, a cluster, other decoders, loops and formats.

    fashion-ntm bench extract --set subjects=engine,bad --set folder=DIR

All parts are measured in one run, in sequence in every round, and each figure is the median over the rounds (for
ratios: of the ratios per round), so that a busy machine slows all parts equally.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from dask.system import cpu_count

from manifests.schema import Component, RunSpec
from pipeline.bench import selected
from pipeline.bench._clip_retrieval import ClipRetrieval, absent
from pipeline.bench._extract_figures import TORCHVISION, figures_of, render, verdict
from pipeline.bench._machine import Load
from pipeline.bench._stage1_parts import Parts
from pipeline.bench._world import corrupted, dataset_of, draw_images, save_small_clip
from pipeline.core.device import doublings
from pipeline.extraction.distributed import cluster_for
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.base import ExtractorError
from pipeline.extraction.precision import PRECISIONS
from pipeline.extraction.probe import default_workers

__all__ = ["figures_of", "render", "run", "verdict"]

Measured: TypeAlias = dict[str, Callable[[], dict[str, Any]]]  # part -> a function that measures it once
SUBJECTS = ("engine", "scaling", "torchvision", "bad", "naive", "clip-retrieval", "dask", "variants")


def run(
    subjects: str | Sequence[str] = "engine,bad,naive",
    images: int = 384,
    rounds: int = 3,
    batch_size: int = 32,
    workers: int = 0,
    threads: int = 1,
    width: int = 320,
    layers: int = 8,
    patch: int = 32,
    model: str = "",
    folder: str = "",
    device: str = "auto",
    precision: str = "fp32",
    pairs: int = 3,
    shard_rows: int = 128,
    scratch: str = "",
    progress: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Return rates in images per second. Raises ManifestError for an unknown subject.

    ``subjects``: "engine" (the upper bounds, and one thread), "scaling" (decoding by 1, 2, 4, ... processes), "bad" (1%
    of the images corrupted), "torchvision" (decoding by it: alone, scaled, and in the extraction), "naive" (a plain
    loop), "clip-retrieval" (its inference, where it is installed), "dask" (one worker of a local cluster), "variants"
    (channels-last, torch.compile); the whole extraction is always measured too. ``model``: a CLIP-like folder or hub
    id; otherwise a ViT of ``width``, ``layers`` and ``patch`` with random weights. ``folder``: real images, of which the
    first ``images`` are used; otherwise they are drawn. ``workers``: decoding processes, 0 for the CPUs that the model
    leaves free. ``threads``: model threads on a CPU. ``pairs``: (image, text) requests per image for the naive loop.
    """
    asked = selected("subject", subjects, SUBJECTS)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=scratch or None) as place, ExitStack() as stack:
        root = Path(place)
        chosen = model or str(save_small_clip(root / "model", width, layers, patch))
        source = Path(folder) if folder else root / "images"
        if not folder:
            draw_images(source, images)
        component = Component(name="clip", model=chosen, dtype=PRECISIONS[precision])  # type: ignore[call-arg]
        spec = RunSpec(name="bench", dataset=Component(name="jsonl"), extractor=component)
        extractor = load_extractor(spec, device)
        count = workers or default_workers(extractor.device)
        made = Parts(root, dataset_of(source, images), extractor, batch_size, count, shard_rows)
        parts: Measured = {"engine": made.engine}
        started: dict[str, float] = {}
        if "engine" in asked:
            parts |= {"model": made.model_ceiling, "gemm": made.gemm_floor, "decode": made.decode_ceiling}
            parts |= {"both": made.side_by_side, "one thread": partial(made.engine, workers=0)}  # all steps in sequence
        if "scaling" in asked:
            parts |= {f"decode {n}": partial(made.decode_ceiling, n) for n in doublings(cpu_count())}
        missing: dict[str, str] = {}
        if "torchvision" in asked:
            parts |= _torchvision(made, spec, device, missing, "scaling" in asked)
        if "clip-retrieval" in asked:
            parts |= _clip_retrieval(made, chosen, source, missing)
        if "bad" in asked:
            bad = stack.enter_context(corrupted(source, root / "bad", images, 0.01))
            parts["1% bad"] = lambda: made.bad_images(root / "bad", bad)
        if "naive" in asked:
            parts |= {"naive": lambda: made.naive(pairs), "one by one": partial(made.engine, batch_size=1)}
        if "dask" in asked:
            parts["dask"] = _cluster(stack, spec, device, made, started)
        if "variants" in asked:
            parts |= {"model": made.model_ceiling, **made.variants()}
        made.engine()  # starts threads, fills the page cache
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
        for number in range(1, rounds + 1):
            for name, part in parts.items():
                progress(f"round {number} of {rounds}: {name}")
                with Load() as load:
                    measured = part()
                found[name].append({**measured, **_about(load, len(made.items))})
    setup = {"device": extractor.device.type, "images": len(made.items), "decoding_processes": count, "pairs": pairs}
    setup |= {"model_threads": threads, "cores": cpu_count(), "started": started, "missing": missing}
    return figures_of(found, setup)


def _torchvision(made: Parts, spec: Any, device: str, missing: dict[str, str], scaling: bool) -> Measured:
    """Return the parts with torchvision's decode, none if it does not load; ``missing`` gets the reason."""
    options = {**spec.extractor.options, "decode": "torchvision"}
    extractor = load_extractor(spec.model_copy(update={"extractor": Component(name="clip", **options)}), device)
    try:
        extractor.require()
    except ExtractorError as error:
        missing["torchvision"] = str(error)
        return {}
    other = Parts(made.root / "torchvision", made.dataset, extractor, made.batch_size, made.workers, made.shard_rows)
    more = doublings(cpu_count()) if scaling else ()
    alone: Measured = {f"{TORCHVISION}decode": other.decode_ceiling, f"{TORCHVISION}engine": other.engine}
    return alone | {f"{TORCHVISION}decode {n}": partial(other.decode_ceiling, n) for n in more}


def _clip_retrieval(made: Parts, model: str, folder: Path, missing: dict[str, str]) -> Measured:
    if reason := absent():
        missing["clip-retrieval"] = reason
        return {}
    out, device = made.root / "clip-retrieval", str(made.extractor.device)
    peer = ClipRetrieval(model, folder, len(made.items), out, made.batch_size, made.workers, device)
    return {"clip-retrieval": peer.run}


def _cluster(
    stack: ExitStack, spec: Any, device: str, made: Parts, started: dict[str, float]
) -> Callable[[], dict[str, float]]:
    """Start one worker process; ``started``: seconds until it runs, and until it loaded the model and did one job."""
    began = time.perf_counter()
    cluster = stack.enter_context(cluster_for(spec, device, local=1))
    started["cluster"] = time.perf_counter() - began
    made.engine(cluster=cluster)
    started["first job"] = time.perf_counter() - began - started["cluster"]
    return lambda: made.engine(cluster=cluster)


def _about(load: Load, images: int) -> dict[str, float]:
    """Return the machine load for a part's record; ``cpu``: CPU seconds per image."""
    known = {"cpu": load.cpu / images, "others": load.others, "host": load.host}
    return {name: share for name, share in known.items() if share is not None}
