"""Figure specs: scatter plot of an ablation, recall against measured inference time (paper Figure 8)."""

from __future__ import annotations

from manifests.errors import Problems
from manifests.load import read_toml, spec_path
from manifests.options import parse_file
from manifests.schema import Frozen
from manifests.table_spec import Metric


class FigureSpec(Frozen):
    """Recall (y) against milliseconds per session (x). ``series`` and ``size``: options shown by color and size."""

    title: str
    run: str
    ablation: str
    metric: Metric = "mean"
    category: str = "overall"
    subset: str = "all"
    series: str = "stages"
    series_label: str = "C"
    size: str = "slots"
    size_label: str = "N (slots)"
    notes: tuple[str, ...] = ()


def load_figure_spec(name: str) -> FigureSpec:
    """Load a figure spec by shipped name ("8") or path. Raise ManifestError with every problem of the file."""
    path = spec_path(name, "figures")
    values = read_toml(path)
    if "dataset" in values:
        problems = Problems(path)
        problems.add("key dataset", "a run spec, not a figure's", "name the figure, and give this file with --spec")
        problems.raise_if_any()
    return parse_file(FigureSpec, values, str(path))
