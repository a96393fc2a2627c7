"""Figure files with matplotlib (optional), without a display and without global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.errors import FashionNTMError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
MARKERS = "osD^v<>Pph*X"  # of lines, in order


class DrawingError(FashionNTMError):
    """matplotlib is missing, there is nothing to draw, or a file suffix is not an image format."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches. Raises DrawingError if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DrawingError(f"drawing needs matplotlib ({error}): pip install 'fashion-ntm[plots]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_suffixes(paths: Sequence[Path]) -> None:
    """Raise DrawingError for a file that ``save_figure`` cannot write. Call it before any work."""
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise DrawingError(f"{path}: unknown kind of picture {path.suffix!r}; end it in {', '.join(SUFFIXES)}")


def save_figure(figure: Figure, paths: Sequence[Path]) -> None:
    """Write the figure as PNG (160 dpi), SVG or PDF by the suffix. Equal data gives equal bytes."""
    import matplotlib

    check_suffixes(paths)
    dates: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "fashion-ntm", "svg.fonttype": "none"}):
            figure.savefig(path, dpi=160, metadata=dates.get(path.suffix.lower(), {}))
