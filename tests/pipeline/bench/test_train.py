"""The training benchmark measures what it says, at a size that takes no time."""

from __future__ import annotations

import json

from pipeline.bench import train


def test_figures_and_table() -> None:
    result = train.run(stages=(1, 2), batch=4, turns=2, dim=8, slots=2, hidden=3, repeats=1)
    json.dumps(result, allow_nan=False)
    assert [(r["model"], r["stages"]) for r in result["steps"]] == [("lstm", 0), ("cm_ntm", 1), ("cm_ntm", 2)]
    assert all(r["ms"] > 0 and r["floor_ms"] > 0 and r["gflop"] > 0 for r in result["steps"])
    lstm = result["steps"][0]
    # Forward and both gradients of each product, but for those of queries and targets; B T = 8 rows.
    assert lstm["gflop"] * 1e9 == 8 * (2 * (2 * 12 * 8 + 3 * 12 * 3) + 6 * 3 * 8) + 2 * (2 * 2 * 4 * 4 * 8)
    text = train.render(result)
    assert "cm_ntm C=2" in text and "GEMM" in text and "100 epochs Shoes" in text
