"""Plot Figure 7: preference counts of each model by participant."""

from __future__ import annotations

from pathlib import Path

from manifests.errors import IncompleteError
from pipeline.views.study.results import StudyResults


def write_chart(path: Path, results: StudyResults) -> None:
    """Write bars by participant as PNG, PDF or SVG. Raises IncompleteError without matplotlib, for another suffix."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise IncompleteError("the chart needs matplotlib: python -m pip install 'fashion-ntm[plots]'") from None
    people, models = list(results.participants), [rate.model for rate in results.rates]
    figure = Figure(figsize=(max(4.0, 1.1 * len(people) + 2.2), 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(models)
    for n, rate in enumerate(results.rates):
        places = [p + (n - (len(models) - 1) / 2) * width for p in range(len(people))]
        counts = [results.participants[name][rate.model] for name in people]
        bars = axes.bar(
            places, counts, width * 0.94, label=rate.title, color=("#0b6266", "#d9822b", "#5a4fa2", "#8c939c")[n]
        )
        axes.bar_label(bars, fontsize=7, padding=1)
    axes.set_xticks(range(len(people)), people)
    axes.set_ylabel("preferred retrievals")
    axes.locator_params(axis="y", integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(models), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=200)
    except ValueError as error:
        raise IncompleteError(f"{path}: {error}: use .png, .pdf or .svg") from None
