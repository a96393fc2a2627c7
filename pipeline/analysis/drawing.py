"""Figures in files: matplotlib where it is installed, without a display and without global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.errors import FashionNTMError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


class DrawingError(FashionNTMError):
    """No library to draw with, nothing to draw, or a file name whose suffix is no picture's."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches. Raises DrawingError when matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DrawingError(f"drawing needs matplotlib ({error}): pip install 'fashion-ntm[plots]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_suffixes(paths: Sequence[Path]) -> None:
    """Raise DrawingError for a file that ``save_figure`` could not write, before any work is done."""
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise DrawingError(f"{path}: unknown kind of picture {path.suffix!r}; end it in {', '.join(SUFFIXES)}")


def save_figure(figure: Figure, paths: Sequence[Path]) -> None:
    """Write the figure; PNG at 160 dots an inch, SVG or PDF by the suffix. The same data gives the same bytes."""
    import matplotlib

    check_suffixes(paths)
    dates: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "fashion-ntm", "svg.fonttype": "none"}):
            figure.savefig(path, dpi=160, metadata=dates.get(path.suffix.lower(), {}))
