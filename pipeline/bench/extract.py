"""Stage 1 on the demo's images and texts: rows a second, by stage, and what a second call costs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


def run(
    model: str = "", dtypes: tuple[str, ...] = ("float32", "bfloat16"), batch_size: int = 64, workers: int = 2,
    repeats: int = 3, families: int = 8, device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Median over ``repeats`` interleaved extractions of a small demo (``families`` a category), per compute dtype.

    ``model``: a CLIP-like local folder or hub id; the demo's own by default. Rates are rows a second of the whole call
    and, by stage, of that stage alone.
    """
    from manifests.datasets import datasets
    from manifests.schema import Component, RunSpec
    from pipeline.demo.run import demo_spec
    from pipeline.extraction.extractors import load_extractor
    from pipeline.extraction.run import extract

    reports: dict[str, list[Any]] = {dtype: [] for dtype in dtypes}
    resumed: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = datasets.get("demo")
        options = source.Options(train_families=families, test_families=families)  # type: ignore[call-arg]
        dataset = source.load(options, root)
        chosen = model or str(demo_spec(root)[0].extractor.options["model"])
        for repeat in range(repeats):
            for dtype in dtypes:
                component = Component(name="clip", model=chosen, dtype=dtype)  # type: ignore[call-arg]
                spec = RunSpec(name="bench", dataset=Component(name="demo"), extractor=component)
                extractor = load_extractor(spec, device)
                how: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": "silent"}
                reports[dtype].append(extract(dataset, extractor, root / f"{dtype}{repeat}", **how))
                again = extract(dataset, extractor, root / f"{dtype}{repeat}", **how)
                resumed[dtype].append(again.seconds["wall"])
    return {
        dtype: {
            "rows": reports[dtype][0].extracted,
            "rows_per_s": {stage: _median(r.rates[stage] for r in reports[dtype]) for stage in reports[dtype][0].rates},
            "second_call_s": _median(resumed[dtype]),
        }
        for dtype in dtypes
    }


def _median(values: Any) -> float:
    import statistics

    return statistics.median(values)


def render(figures: dict[str, Any]) -> str:
    lines = []
    for dtype, found in figures.items():
        stages = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in found["rows_per_s"].items() if stage != "wall")
        whole = found["rows_per_s"]["wall"]
        lines.append(
            f"{dtype:9} {found['rows']:,} rows at {whole:,.0f} rows/s (each stage alone: {stages}); "
            f"a second call takes {found['second_call_s']:.2f} s"
        )
    return "\n".join(lines)
