"""Stage 1 throughput against its upper bounds; optionally bad images, a cluster, other decoders, loops and formats.

    fashion-ntm bench extract --set subjects=engine,bad --set folder=DIR

All parts are measured in one run, in sequence in every round, and each figure is the median over the rounds (for
ratios: of the ratios per round), so that a busy machine slows all parts equally.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.bench import selected
from pipeline.bench._load import Load
from pipeline.bench._stage1_parts import Parts
from pipeline.bench._world import corrupted, dataset_of, draw_images, save_small_clip

SUBJECTS = ("engine", "scaling", "torchvision", "bad", "naive", "clip-retrieval", "dask", "variants")
TORCHVISION = "torchvision "  # before the names of the parts with ``extractor.decode = "torchvision"``
_ELSEWHERE = ("dask",)  # parts that work in long-lived processes, which this process's CPU time does not include


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
) -> dict[str, Any]:
    """Return rates in images per second.

    ``subjects``: "engine" (the upper bounds, and one thread), "scaling" (decoding by 1, 2, 4, ... processes), "bad" (1%
    of the images corrupted), "torchvision" (decoding by it: alone, scaled, and in the extraction), "naive" (a plain
    loop), "clip-retrieval" (its inference, where it is installed), "dask" (one worker of a local cluster), "variants"
    (channels-last, torch.compile); the whole extraction is always measured too. ``model``: a CLIP-like folder or hub id; otherwise a
    ViT of ``width``, ``layers`` and ``patch`` with random weights. ``folder``: real images, of which the first ``images`` are
    used; otherwise they are drawn. ``workers``: decoding processes, 0 for the CPUs that the model leaves free.
    ``threads``: model threads on a CPU.
    ``pairs``: (image, text) requests per image for the naive loop, which encodes the image of each.

    Raises ManifestError for an unknown subject.
    """
    import torch

    from manifests.schema import Component, RunSpec
    from pipeline.extraction.extractors import load_extractor
    from pipeline.extraction.precision import PRECISIONS
    from pipeline.extraction.probe import default_workers

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
        parts: dict[str, Callable[[], dict[str, float]]] = {"engine": made.engine}
        started: dict[str, float] = {}
        if "engine" in asked:
            parts |= {
                "model": made.model_ceiling,
                "gemm": made.gemm_floor,
                "decode": made.decode_ceiling,
                "both": made.side_by_side,
                "one thread": made.sequential,
            }
        if "scaling" in asked:
            parts |= {f"decode {n}": partial(made.decode_ceiling, n) for n in _counts()}
        missing: dict[str, str] = {}
        if "torchvision" in asked:
            parts |= _torchvision(made, spec, device, missing, "scaling" in asked)
        if "clip-retrieval" in asked:
            parts |= _clip_retrieval(made, chosen, source, missing)
        if "bad" in asked:
            bad = stack.enter_context(corrupted(source, root / "bad", images, 0.01))
            parts["1% bad"] = lambda: made.bad_images(root / "bad", bad)
        if "naive" in asked:
            parts |= {"naive": lambda: made.naive(pairs), "one by one": made.one_by_one}
        if "dask" in asked:
            parts["dask"] = _cluster(stack, spec, device, made, started)
        if "variants" in asked:
            from pipeline.bench._variants import variants

            parts |= {"model": made.model_ceiling, **variants(made)}
        made.engine()  # starts threads, fills the page cache
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
        for _ in range(rounds):
            for name, part in parts.items():
                with Load() as load:
                    measured = part()
                found[name].append({**measured, **_about(load, len(made.items))})
    setup = {
        "device": extractor.device.type,
        "images": len(made.items),
        "decoding_processes": count,
        "model_threads": threads,
        "cores": _cores(),
        "pairs": pairs,
        "started": started,
        "missing": missing,
    }
    return _figures(found, setup)


def _torchvision(
    made: Parts, spec: Any, device: str, missing: dict[str, str], scaling: bool
) -> dict[str, Callable[[], dict[str, float]]]:
    """Return the parts with torchvision's decode, none if it does not load; ``missing`` gets the reason."""
    from manifests.schema import Component
    from pipeline.extraction.extractors import load_extractor
    from pipeline.extraction.extractors.base import ExtractorError

    options = {**spec.extractor.options, "decode": "torchvision"}
    extractor = load_extractor(spec.model_copy(update={"extractor": Component(name="clip", **options)}), device)
    try:
        extractor.require()
    except ExtractorError as error:
        missing["torchvision"] = str(error)
        return {}
    other = Parts(made.root / "torchvision", made.dataset, extractor, made.batch_size, made.workers, made.shard_rows)
    counts = {f"{TORCHVISION}decode {n}": partial(other.decode_ceiling, n) for n in _counts()} if scaling else {}
    return {f"{TORCHVISION}decode": other.decode_ceiling, f"{TORCHVISION}engine": other.engine, **counts}


def _clip_retrieval(
    made: Parts, model: str, folder: Path, missing: dict[str, str]
) -> dict[str, Callable[[], dict[str, float]]]:
    from pipeline.bench._clip_retrieval import ClipRetrieval, absent

    if reason := absent():
        missing["clip-retrieval"] = reason
        return {}
    device = str(made.extractor.device)
    out = made.root / "clip-retrieval"
    peer = ClipRetrieval(model, folder, len(made.items), out, made.batch_size, made.workers, device)
    return {"clip-retrieval": peer.run}


def _cluster(
    stack: ExitStack, spec: Any, device: str, made: Parts, started: dict[str, float]
) -> Callable[[], dict[str, float]]:
    """Start one worker process; ``started``: seconds until it runs, and until it loaded the model and did one job."""
    from pipeline.extraction.distributed import cluster_for

    began = time.perf_counter()
    cluster = stack.enter_context(cluster_for(spec, device, local=1))
    started["cluster"] = time.perf_counter() - began
    made.engine(cluster=cluster)
    started["first job"] = time.perf_counter() - began - started["cluster"]
    return lambda: made.engine(cluster=cluster)


def _about(load: Load, images: int) -> dict[str, float]:
    """Return the machine load for a part's record; ``cpu``: CPU seconds per image."""
    known = {"others": load.others, "host": load.host}
    return {"cpu": load.cpu / images, **{name: share for name, share in known.items() if share is not None}}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _counts() -> list[int]:
    """Return 1, 2, 4, ... and the number of cores."""
    return sorted({*(2**n for n in range(_cores().bit_length()) if 2**n <= _cores()), _cores()})


def _figures(found: dict[str, list[dict[str, Any]]], setup: dict[str, Any]) -> dict[str, Any]:
    def median(name: str, key: str = "rate") -> float:
        return statistics.median(part[key] for part in found[name])

    def ratio(one: str, *others: str) -> float:
        """Return the median over the rounds of rate(one) / the lowest rate of the others."""
        rounds: Iterable[tuple[dict[str, Any], ...]] = zip(found[one], *(found[o] for o in others), strict=True)
        return statistics.median(first["rate"] / min(other["rate"] for other in rest) for first, *rest in rounds)

    stages = [key for key in found["engine"][0] if key.startswith("busy ")]
    busy = {stage.removeprefix("busy "): median("engine", stage) for stage in stages}
    here = [part for name, rounds in found.items() if name not in _ELSEWHERE for part in rounds if "others" in part]
    figures: dict[str, Any] = {
        **setup,
        "images_per_s": {name: median(name) for name in found},
        "rounds": {name: [part["rate"] for part in rounds] for name, rounds in found.items()},
        "busy": busy,
        "verdict": verdict(busy),
        "writer_share": busy["write"],
        "disturbed": {k: statistics.median(part[k] for part in here) for k in ("others", "host")} if here else {},
    }
    if "decode" in found:
        alone = median("model", "cpu") + median("decode", "cpu")
        figures |= {
            "of_lower_ceiling": ratio("engine", "model", "decode"),
            "of_model_ceiling": ratio("engine", "model"),
            "of_side_by_side": ratio("engine", "both"),
            "gain_of_overlap": ratio("engine", "one thread"),
            "cpu_ms": {"alone": 1e3 * alone, "engine": 1e3 * median("engine", "cpu")},
            "limit_of_the_cores": setup["cores"] / alone,
            "of_all_ceilings": of_all_ceilings(found, setup["cores"], "engine", "decode"),
            "verdict": "decode-bound" if median("decode") < median("model") else "model-bound",
        }
    if "gemm" in found:
        figures["gemm"] = {
            "gflop": median("gemm", "gflop"),
            "gflops": median("gemm", "gflops"),
            "model_of_floor": ratio("model", "gemm"),
        }
    for before, key in (("", "scaling"), (TORCHVISION, "torchvision_scaling")):
        counts = [int(name.split()[-1]) for name in found if name.startswith(f"{before}decode ")]
        if counts:
            rows = {n: ratio(f"{before}decode {n}", f"{before}decode 1") / n for n in counts}
            figures[key] = {str(n): share for n, share in rows.items()}
    if TORCHVISION + "engine" in found:
        whole, decode = TORCHVISION + "engine", TORCHVISION + "decode"
        figures["torchvision"] = {"of_engine": ratio(whole, "engine"), "writer_share": median(whole, "busy write")}
        if "model" in found:
            figures["torchvision"] |= {
                "decode_of_pillow": ratio(decode, "decode"),
                "of_lower_ceiling": ratio(whole, "model", decode),
                "of_all_ceilings": of_all_ceilings(found, setup["cores"], whole, decode),
                "cpu_ms": {
                    "alone": 1e3 * (median("model", "cpu") + median(decode, "cpu")),
                    "engine": 1e3 * median(whole, "cpu"),
                },
            }
    if "clip-retrieval" in found:
        figures["of_clip_retrieval"] = ratio("engine", "clip-retrieval")
    if "1% bad" in found:
        figures["bad"] = {
            "images": median("1% bad", "bad"),
            "list_is_exact": all(part["exact"] for part in found["1% bad"]),
            "rate_of_clean": ratio("1% bad", "engine"),
        }
    if "naive" in found:
        figures["against_naive"] = {
            "pairs_an_image": setup["pairs"],
            "whole": setup["pairs"] * ratio("engine", "naive"),
            "dedup": float(setup["pairs"]),
            "loop": ratio("engine", "naive"),
            "batching": ratio("engine", "one by one"),
        }
    if "dask" in found:
        figures["dask_of_local"] = ratio("dask", "engine")
    figures["variants"] = {
        name: {"of_plain": ratio(name, "model"), "least_cosine": median(name, "least_cosine")}
        for name, rounds in found.items()
        if "least_cosine" in rounds[0]
    }
    return figures


def of_all_ceilings(found: dict[str, list[dict[str, Any]]], cores: int, whole: str, decode: str) -> float:
    """Return the median over the rounds of rate(whole) / the lowest of three ceilings.

    These are the model alone, decoding alone, and, as both share the CPUs, the cores that other processes left during
    ``whole`` divided by the CPU seconds per image of model and decoding alone.
    """
    shares = []
    for one, model, decoding in zip(found[whole], found["model"], found[decode], strict=True):
        left = cores * (1 - one.get("others", 0.0) - one.get("host", 0.0))
        shares.append(one["rate"] / min(model["rate"], decoding["rate"], left / (model["cpu"] + decoding["cpu"])))
    return statistics.median(shares)


def verdict(busy: dict[str, float]) -> str:
    """Return the stage with the largest busy time, as "model-bound", "decode-bound" or "write-bound"."""
    kinds = {"model": "model-bound", "decode": "decode-bound", "write": "write-bound"}
    return kinds[max(kinds, key=lambda stage: busy.get(stage, 0.0))]


def render(figures: dict[str, Any]) -> str:
    rates, f = figures["images_per_s"], figures

    def row(what: str, name: str, more: str = "") -> str:
        return f"{what:31}{rates[name]:9,.1f} images/s{more}"

    lines = []
    if "of_lower_ceiling" in f:
        lines += [
            row("model alone, synthetic input", "model", f" on {f['device']}, {f['model_threads']} thread(s)"),
            row("decoding alone", "decode", f" by {f['decoding_processes']} process(es)"),
            row("both at once, not connected", "both", ": what these cores give to two independent jobs"),
            f"{'all cores at all times':31}{f['limit_of_the_cores']:9,.1f} images/s: {f['cores']} over the CPU time of both",
        ]
    if gemm := f.get("gemm"):
        share = f": {gemm['gflop']:.2f} GFLOP an image at the {gemm['gflops']:,.0f} GFLOP/s of one large product; the model "
        lines.insert(
            1, row("GEMM floor of the image tower", "gemm", f"{share}reaches {gemm['model_of_floor']:.2f} of it")
        )
    for before, key in (("", "scaling"), (TORCHVISION, "torchvision_scaling")):
        for name, share in f.get(key, {}).items():
            part = f"{before}decode {name}"
            lines.append(row(f"{before}decoding by {name} process(es)", part, f": {share:.2f} of {name} x one"))
    lines.append(row("extraction, overlapped", "engine", _against(f)))
    lines.append(f"busy  {', '.join(f'{stage} {100 * share:.1f}%' for stage, share in f['busy'].items())}")
    lines.append(f"verdict: {f['verdict']}; writer and integrity {100 * f['writer_share']:.1f}% of the wall time")
    if cpu := f.get("cpu_ms"):
        lines.append(
            f"CPU an image: {cpu['engine']:.2f} ms in the extraction, {cpu['alone']:.2f} ms in model and decoding alone"
        )
    if other := f.get("torchvision"):
        lines += _torchvision_lines(other, row)
    if "of_clip_retrieval" in f:
        lines.append(row("clip-retrieval's inference", "clip-retrieval", f"; ours is {f['of_clip_retrieval']:.2f}x"))
    lines += [f"not measured: {name}: {why}" for name, why in f.get("missing", {}).items()]
    if bad := f.get("bad"):
        exact = "exact" if bad["list_is_exact"] else "WRONG"
        share = f": {bad['rate_of_clean']:.3f}x the clean run; the list of failures is {exact}"
        lines.append(row(f"with {bad['images']:.0f} bad images", "1% bad", share))
    if naive := f.get("against_naive"):
        lines.append(
            row(
                "naive loop (own, DataLoader)",
                "naive",
                (
                    f"; for {naive['pairs_an_image']} pairs an image ours is {naive['whole']:.1f}x: dedup {naive['dedup']:.1f}x, the "
                    f"rest {naive['loop']:.2f}x; batching alone, against batches of one, {naive['batching']:.2f}x"
                ),
            )
        )
    if "dask_of_local" in f:
        start = f["started"]
        lines.append(
            row(
                "one Dask worker",
                "dask",
                (
                    f": {f['dask_of_local']:.3f}x local, after {start['cluster']:.1f} s for the cluster and a first job of "
                    f"{start['first job']:.1f} s that loads the model"
                ),
            )
        )
    for name, one in f["variants"].items():
        share = f": {one['of_plain']:.2f}x the model as it is, least cosine {one['least_cosine']:.7f}"
        lines.append(row(f"model {name}", name, share))
    if gone := f["disturbed"]:
        lines.append(
            f"meanwhile other processes used {100 * gone['others']:.0f}% of the cores, the host {100 * gone['host']:.0f}%"
        )
    return "\n".join(lines)


def _against(f: dict[str, Any]) -> str:
    if "of_lower_ceiling" not in f:
        return ""
    return (
        f": {f['of_lower_ceiling']:.2f}x the lower ceiling, {f['of_all_ceilings']:.2f}x the lowest with that of the cores left by "
        f"others, {f['of_side_by_side']:.2f}x both at once; {f['gain_of_overlap']:.2f}x one thread"
    )


def _torchvision_lines(other: dict[str, Any], row: Callable[..., str]) -> list[str]:
    share = f": {other['of_engine']:.2f}x with Pillow's decode; writer and integrity {100 * other['writer_share']:.1f}%"
    lines = [row("extraction, torchvision's decode", TORCHVISION + "engine", share)]
    if "of_lower_ceiling" in other:
        lines[0] += (
            f"; {other['of_lower_ceiling']:.2f}x the lower ceiling, {other['of_all_ceilings']:.2f}x the lowest with that of "
            "the cores"
        )
        cpu, times = other["cpu_ms"], f": {other['decode_of_pillow']:.2f}x Pillow's"
        lines.append(row("decoding alone, torchvision", TORCHVISION + "decode", times))
        lines.append(f"CPU an image with it: {cpu['engine']:.2f} ms, {cpu['alone']:.2f} ms in model and decoding alone")
    return lines
