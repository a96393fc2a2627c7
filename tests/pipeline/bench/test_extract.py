"""What `bench extract` concludes from its figures."""

from __future__ import annotations

from pipeline.bench.extract import _figures, render, verdict


def test_the_verdict_is_the_busiest_stage() -> None:
    assert verdict({"model": 0.9, "decode": 0.5, "write": 0.01}) == "model-bound"
    assert verdict({"model": 0.4, "decode": 0.9, "stack": 0.95}) == "decode-bound"
    assert verdict({"model": 0.1, "decode": 0.2, "write": 0.8}) == "write-bound"


def test_ratios_are_medians_of_the_rounds_ratios() -> None:
    def rounds(*rates: float) -> list[dict]:
        return [{"rate": r, "busy model": 0.9, "busy decode": 0.3, "busy write": 0.01} for r in rates]

    found = {"model": rounds(100, 50, 80), "decode": rounds(200, 40, 90), "both": rounds(100, 50, 80),
             "engine": rounds(95, 40, 76), "one thread": rounds(50, 20, 38)}  # fmt: skip
    figures = _figures(found, 3, 1, "cpu")
    assert figures["of_lower_ceiling"] == 0.95 and figures["gain_of_overlap"] == 2.0
    assert figures["images_per_s"]["engine"] == 76 and figures["verdict"] == "model-bound"
    assert "0.95x the lower ceiling" in render(figures) and "verdict: model-bound" in render(figures)
