"""Figures and text of `bench extract`, from the rounds that its parts measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

_ELSEWHERE = ("dask",)  # parts that work in long-lived processes, which this process's CPU time does not include
TORCHVISION = "torchvision "  # before the names of the parts with ``extractor.decode = "torchvision"``


def figures_of(found: dict[str, list[dict[str, Any]]], setup: dict[str, Any]) -> dict[str, Any]:
    """Return medians over the rounds of ``found`` (part -> its rounds), and of the ratios per round."""

    def median(name: str, key: str = "rate") -> float:
        return statistics.median(part[key] for part in found[name])

    def ratio(one: str, *others: str) -> float:
        """Return the median over the rounds of rate(one) / the lowest rate of the others."""
        rounds: Iterable[tuple[dict[str, Any], ...]] = zip(found[one], *(found[o] for o in others), strict=True)
        return statistics.median(first["rate"] / min(other["rate"] for other in rest) for first, *rest in rounds)

    def against_ceilings(whole: str, decode: str) -> dict[str, Any]:
        """Return a whole extraction relative to the ceilings, and CPU milliseconds per image."""
        alone, engine = (1e3 * sum(median(part, "cpu") for part in parts) for parts in (("model", decode), (whole,)))
        shares = {"of_all_ceilings": of_all_ceilings(found, setup["cores"], whole, decode)}
        return {
            "of_lower_ceiling": ratio(whole, "model", decode),
            **shares,
            "cpu_ms": {"alone": alone, "engine": engine},
        }

    stages = [key for key in found["engine"][0] if key.startswith("busy ")]
    busy = {stage.removeprefix("busy "): median("engine", stage) for stage in stages}
    here = [part for name, rounds in found.items() if name not in _ELSEWHERE for part in rounds if "others" in part]
    figures: dict[str, Any] = {**setup, "images_per_s": {name: median(name) for name in found}}
    figures["rounds"] = {name: [part["rate"] for part in rounds] for name, rounds in found.items()}
    figures |= {"busy": busy, "verdict": verdict(busy), "writer_share": busy["write"]}
    load = {k: statistics.median(part[k] for part in here) for k in ("others", "host")} if here else {}
    figures["disturbed"] = load
    if "decode" in found:
        figures |= against_ceilings("engine", "decode")
        others = {"of_model_ceiling": "model", "of_side_by_side": "both", "gain_of_overlap": "one thread"}
        figures |= {key: ratio("engine", other) for key, other in others.items()}
        figures["limit_of_the_cores"] = 1e3 * setup["cores"] / figures["cpu_ms"]["alone"]
        figures["verdict"] = "decode-bound" if median("decode") < median("model") else "model-bound"
    if "gemm" in found:
        figures["gemm"] = {key: median("gemm", key) for key in ("gflop", "gflops")}
        figures["gemm"]["model_of_floor"] = ratio("model", "gemm")
    for before, key in (("", "scaling"), (TORCHVISION, "torchvision_scaling")):
        counts = [int(name.split()[-1]) for name in found if name.startswith(f"{before}decode ")]
        if counts:
            rows = {n: ratio(f"{before}decode {n}", f"{before}decode 1") / n for n in counts}
            figures[key] = {str(n): share for n, share in rows.items()}
            figures["cpu_ms_" + key] = {str(n): 1e3 * median(f"{before}decode {n}", "cpu") for n in counts}
    if TORCHVISION + "engine" in found:
        whole, decode = TORCHVISION + "engine", TORCHVISION + "decode"
        figures["torchvision"] = {"of_engine": ratio(whole, "engine"), "writer_share": median(whole, "busy write")}
        if "model" in found:
            figures["torchvision"] |= against_ceilings(whole, decode)
            figures["torchvision"]["decode_of_pillow"] = ratio(decode, "decode")
    if "clip-retrieval" in found:
        figures["of_clip_retrieval"] = ratio("engine", "clip-retrieval")
        figures["cpu_ms_clip_retrieval"] = [1e3 * median(name, "cpu") for name in ("clip-retrieval", "engine")]
    if "1% bad" in found:
        exact = all(part["exact"] for part in found["1% bad"])
        figures["bad"] = {"images": median("1% bad", "bad"), "list_is_exact": exact}
        figures["bad"]["rate_of_clean"] = ratio("1% bad", "engine")
    if "naive" in found:
        loop, pairs = ratio("engine", "naive"), setup["pairs"]
        figures["against_naive"] = {"pairs_an_image": pairs, "whole": pairs * loop, "dedup": float(pairs), "loop": loop}
        figures["against_naive"]["batching"] = ratio("engine", "one by one")
    if "dask" in found:
        figures["dask_of_local"] = ratio("dask", "engine")
    variants = [name for name, rounds in found.items() if "least_cosine" in rounds[0]]
    each = ({"of_plain": ratio(v, "model"), "least_cosine": median(v, "least_cosine")} for v in variants)
    return figures | {"variants": dict(zip(variants, each, strict=True))}


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
    return max(("model", "decode", "write"), key=lambda stage: busy.get(stage, 0.0)) + "-bound"


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
        share = f": {gemm['gflop']:.2f} GFLOP an image at the {gemm['gflops']:,.1f} GFLOP/s of one large product; the model "
        more = f"{share}reaches {gemm['model_of_floor']:.2f} of it"
        lines.insert(1, row("GEMM floor of the image tower", "gemm", more))
    for before, key in (("", "scaling"), (TORCHVISION, "torchvision_scaling")):
        for name, share in f.get(key, {}).items():
            cpu = f"{f['cpu_ms_' + key][name]:.2f} ms of CPU an image"
            what = f"decoding by {name} process(es)" if not before else f"torchvision, {name} process(es)"
            lines.append(row(what, f"{before}decode {name}", f": {share:.2f} of {name} x one, {cpu}"))
    against = (
        ": {of_lower_ceiling:.2f}x the lower ceiling, {of_all_ceilings:.2f}x the lowest with that of the cores left by "
        "others, {of_side_by_side:.2f}x both at once; {gain_of_overlap:.2f}x one thread"
    )
    lines.append(row("extraction, overlapped", "engine", against.format(**f) if "of_lower_ceiling" in f else ""))
    lines.append(f"busy  {', '.join(f'{stage} {100 * share:.1f}%' for stage, share in f['busy'].items())}")
    lines.append(f"verdict: {f['verdict']}; writer and integrity {100 * f['writer_share']:.1f}% of the wall time")
    if used := f.get("cpu_ms"):
        alone = f"{used['alone']:.2f} ms in model and decoding alone"
        lines.append(f"CPU an image: {used['engine']:.2f} ms in the extraction, {alone}")
    if other := f.get("torchvision"):
        lines += _torchvision_lines(other, row)
    if "of_clip_retrieval" in f:
        peer, ours = f["cpu_ms_clip_retrieval"]
        more = f": {peer:.2f} ms of CPU an image, ours {ours:.2f}; our rate is {f['of_clip_retrieval']:.2f}x"
        lines.append(row("clip-retrieval's inference", "clip-retrieval", more))
    lines += [f"not measured: {name}: {why}" for name, why in f.get("missing", {}).items()]
    if bad := f.get("bad"):
        exact = "exact" if bad["list_is_exact"] else "WRONG"
        share = f": {bad['rate_of_clean']:.3f}x the clean run; the list of failures is {exact}"
        lines.append(row(f"with {bad['images']:.0f} bad images", "1% bad", share))
    if naive := f.get("against_naive"):
        more = (
            f"; for {naive['pairs_an_image']} pairs an image ours is {naive['whole']:.1f}x: dedup {naive['dedup']:.1f}x, the "
            f"rest {naive['loop']:.2f}x; batching alone, against batches of one, {naive['batching']:.2f}x"
        )
        lines.append(row("naive loop (own, DataLoader)", "naive", more))
    if "dask_of_local" in f:
        cluster, first = f["started"]["cluster"], f["started"]["first job"]
        more = f": {f['dask_of_local']:.3f}x local, after {cluster:.1f} s for the cluster and a first job of"
        lines.append(row("one Dask worker", "dask", f"{more} {first:.1f} s that loads the model"))
    for name, one in f["variants"].items():
        share = f": {one['of_plain']:.2f}x the model as it is, least cosine {one['least_cosine']:.7f}"
        lines.append(row(f"model {name}", name, share))
    if gone := f["disturbed"]:
        others, host = (f"{100 * gone[key]:.0f}%" for key in ("others", "host"))
        lines.append(f"meanwhile other processes used {others} of the cores, the host {host}")
    return "\n".join(lines)


def _torchvision_lines(other: dict[str, Any], row: Callable[..., str]) -> list[str]:
    share = f": {other['of_engine']:.2f}x with Pillow's decode; writer and integrity {100 * other['writer_share']:.1f}%"
    lines = [row("extraction by torchvision", TORCHVISION + "engine", share)]
    if "of_lower_ceiling" in other:
        lines[0] += f"; {other['of_lower_ceiling']:.2f}x the lower ceiling"
        lines[0] += f", {other['of_all_ceilings']:.2f}x the lowest with that of the cores"
        cpu, times = other["cpu_ms"], f": {other['decode_of_pillow']:.2f}x Pillow's"
        lines.append(row("decoding alone, torchvision", TORCHVISION + "decode", times))
        lines.append(f"CPU an image with it: {cpu['engine']:.2f} ms, {cpu['alone']:.2f} ms in model and decoding alone")
    return lines
