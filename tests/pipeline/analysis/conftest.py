"""Summaries of runs as evaluation writes them, with round numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SUBSETS = ("all", "last pair unseen", "no pair seen")


@pytest.fixture
def summary() -> Callable[..., dict[str, Any]]:
    """(model, seed, base) -> a summary in which category c has R@5 = base + c and R@8 = R@5 + 10 on "all"."""

    def build(model: str, seed: int | None, base: float, **changes: Any) -> dict[str, Any]:
        def metrics(value: float, n: int) -> dict[str, float]:
            return {"n": n, "R@1": value / 4, "R@5": value, "R@8": value + 10, "mean": value + 5, "MRR": value / 2}

        return {
            "run": f"{model}{seed}".replace("_", "").ljust(12, "0"),
            "model": model,
            "seed": seed,
            "store": "5" * 64,
            "dataset": "mt_fashioniq",
            "extractor": "caption+gated",
            "gallery": "caption",
            "contaminated_on": [],
            "metrics": {
                subset: {
                    **{c: metrics(base + n - 4 * part, 100 // (part + 1)) for n, c in enumerate(("dress", "shirt"))},
                    "overall": metrics(base + 0.5 - 4 * part, 200 // (part + 1)),
                }
                for part, subset in enumerate(SUBSETS)
            },
            "averaging": "categories",
            "ties": "count against the model",
            "references": "kept",
            "sessions": 200,
            "skipped": {},
            "galleries": {"dress": {"images": 1500, "dropped": []}, "shirt": {"images": 900, "dropped": []}},
            **changes,
        }

    return build
