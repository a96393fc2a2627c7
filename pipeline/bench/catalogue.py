"""Seconds to draw the demo's catalog, without rendering, by families and turns of the longest session."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from manifests.datasets.demo import DemoOptions, catalogue_of
from manifests.datasets.demo.catalogue import build_catalogue


def run(families: Sequence[int] = (36, 144, 288), turns: Sequence[int] = (4, 10)) -> list[dict[str, Any]]:
    """Return CPU seconds, sessions and garments of nested catalogs with so many train families per category."""
    figures = []
    for longest in turns:
        for count in families:
            build_catalogue.cache_clear()
            began = time.process_time()
            made = catalogue_of(DemoOptions(train_families=count, longest=longest, nested=True))
            spent, sizes = time.process_time() - began, {"sessions": len(made.sessions), "garments": len(made.items)}
            figures.append({"turns": longest, "families": count, **sizes, "cpu_s": spent})
    build_catalogue.cache_clear()
    return figures


def render(figures: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"up to {f['turns']:2} turns, {f['families']:4} families per category: {f['cpu_s']:6.1f} s CPU, "
        f"{f['sessions']:,} sessions, {f['garments']:,} garments"
        for f in figures
    )
