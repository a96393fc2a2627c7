"""Milliseconds per turn of `serve` over a whole gallery: memory step and exact search, with raw matmul and faiss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from pipeline.core.device import cpu_threads, describe, resolve_device, seconds_of
from pipeline.training.dialogue import Dialogue
from pipeline.training.models import build_model
from pipeline.views.retrieval.index import ExactIndex

PERCENTILES = (50, 95, 99)


def run(
    galleries: Sequence[int] = (10_000, 100_000),
    dim: int = 512,
    k: int = 12,
    repeats: int = 60,
    stages: int = 4,
    threads: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Return percentiles over ``repeats`` single queries, each answered by every subject in turn.

    "turn" is the user's waiting time: a CM-NTM step from the carried state, and ``ExactIndex.search``. "matmul" is the
    bare product of one query with all candidates, a lower bound of any exact search; "faiss" is IndexFlatIP, if
    faiss-cpu is installed. ``threads`` 0 keeps torch's own number. The results of the subjects are compared too.
    """
    where = resolve_device(device)
    with cpu_threads(threads or torch.get_num_threads()):
        rows = [_gallery(size, dim, k, repeats, stages, where) for size in galleries]
        sizes = {"dim": dim, "k": k, "repeats": repeats, "stages": stages, "threads": torch.get_num_threads()}
        return {"device": describe(where), **sizes, "galleries": rows}


@torch.inference_mode()
def _gallery(size: int, dim: int, k: int, repeats: int, stages: int, device: torch.device) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(size, dim, generator=generator), dim=-1)
    queries = normalize(torch.randn(repeats, dim, generator=generator), dim=-1).to(device)
    index = ExactIndex(features, device)
    model = build_model("cm_ntm", {"stages": stages}, dim).to(device).eval()
    dialogue = Dialogue(model)

    def turn(query: torch.Tensor) -> Any:
        if dialogue.turn == 4:
            dialogue.back(4)
        return index.search(dialogue.say(query), k).rows.cpu()

    subjects: dict[str, Callable[[torch.Tensor], Any]] = {
        "turn": turn,
        "search": lambda query: index.search(query, k).rows.cpu(),
        "matmul": lambda query: torch.mv(index.features, query),
    }
    agree = None
    with suppress(ImportError):
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        flat = faiss.IndexFlatIP(dim)
        flat.add(features.numpy())
        subjects["faiss"] = lambda query: flat.search(query[None].cpu().numpy(), k)
        ours = [index.search(q, k).rows[0].tolist() for q in queries]
        theirs = [flat.search(q[None].cpu().numpy(), k)[1][0].tolist() for q in queries]
        pairs = list(zip(ours, theirs, strict=True))
        agree = sum(set(a) == set(b) for a, b in pairs) / len(pairs)
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for query in [*queries[:3], *queries]:  # the first three warm up
        for name, work in subjects.items():
            times[name].append(1e3 * seconds_of(partial(work, query), device))
    found = {
        name: dict(zip(map(str, PERCENTILES), np.percentile(ms[3:], PERCENTILES).tolist(), strict=True))
        for name, ms in times.items()
    }
    return {"size": size, "megabytes": size * dim * 4 / 1e6, "ms": found, "same_top_k_as_faiss": agree}


def render(result: dict[str, Any]) -> str:
    lines = [
        f"one query over a gallery of D = {result['dim']} float32, top {result['k']}, {result['repeats']} queries, "
        f"{result['device']}, {result['threads']} thread(s); milliseconds",
        "",
        f"{'gallery':>10}  {'subject':8}" + "".join(f"{'p' + str(p):>9}" for p in PERCENTILES) + f"{'x matmul':>10}",
    ]
    for row in result["galleries"]:
        floor = row["ms"]["matmul"]["50"]
        for name, found in row["ms"].items():
            cells = "".join(f"{found[str(p)]:9.2f}" for p in PERCENTILES)
            lines.append(f"{row['size']:>10,}  {name:8}{cells}{found['50'] / floor:>10.2f}")
        same, what = row["same_top_k_as_faiss"], f"same top {result['k']} as faiss"
        note = "faiss-cpu is not installed: no row of it" if same is None else f"{what}: {same:.0%} of the queries"
        lines.append(f"{'':>10}  {note}")
    turn = f"turn: a step of a {result['stages']}-stage CM-NTM and the search"
    return "\n".join([*lines, "", f"{turn}; search: ExactIndex; matmul: the bare product."])
