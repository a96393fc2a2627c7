"""Small charts as inline SVG: they scale, print, use the page's colors and need no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40
COLORS = 8  # --c0 .. --c7 of the page
Points = Sequence[tuple[float, float]]


def lines(series: Mapping[str, Points], x: str, y: str, about: str) -> str:
    """Return a line chart of named series of (x, y). ``about`` is its text alternative."""
    kept = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    plane = _Plane([p for points in kept.values() for p in points])
    body = []
    for number, (name, points) in enumerate(kept.items()):
        path = " ".join(f"{plane.x(a):.1f},{plane.y(b):.1f}" for a, b in points)
        color = f"var(--c{number % COLORS})"
        mark = _mark(plane.x(points[-1][0]), plane.y(points[-1][1]), color) if points else ""
        line = f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>'
        body.append(f"<g><title>{escape(name)}</title>{line}{mark}</g>")
    return _frame(plane, x, y, about, "".join(body)) + legend(list(kept))


def scatter(series: Mapping[str, Sequence[tuple[float, float, str]]], x: str, y: str, about: str) -> str:
    plane = _Plane([(a, b) for points in series.values() for a, b, _ in points])
    body = [
        f"<g><title>{escape(name)}: {escape(label)}</title>{_mark(plane.x(a), plane.y(b), f'var(--c{n % COLORS})', 4)}</g>"
        for n, (name, points) in enumerate(series.items())
        for a, b, label in points
    ]
    return _frame(plane, x, y, about, "".join(body)) + legend(list(series))


def legend(names: Sequence[str]) -> str:
    items = "".join(
        f'<li><span class="key" style="background:var(--c{n % COLORS})"></span>{escape(name)}</li>'
        for n, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def heat(weights: np.ndarray, label: str) -> str:
    """Return a heat map of the read (upper) and write (lower) weights of each stage: [C, 2, N], 0 to 1."""
    stages, heads, slots = weights.shape
    cell, gap = 9, 5
    width, height = stages * (slots * cell + gap), heads * (cell + 1)
    marks = []
    for (stage, head, slot), value in np.ndenumerate(weights):
        x, y = stage * (slots * cell + gap) + slot * cell, head * (cell + 1)
        marks.append(f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill-opacity="{value:.2f}"/>')
    said = "; ".join(
        f"stage {stage + 1} reads slot {int(weights[stage, 0].argmax()) + 1} ({weights[stage, 0].max():.2f}), "
        f"writes slot {int(weights[stage, 1].argmax()) + 1} ({weights[stage, 1].max():.2f})"
        for stage in range(stages)
    )
    return (
        f'<svg class="heat" role="img" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'aria-label="{escape(label)}: {said}"><title>{escape(said)}</title>{"".join(marks)}</svg>'
    )


class _Plane:
    def __init__(self, points: Points):
        xs, ys = [a for a, _ in points] or [0.0, 1.0], [b for _, b in points] or [0.0, 1.0]
        self.xticks, self.yticks = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))

    def x(self, value: float) -> float:
        return LEFT + (value - self.xticks[0]) / (self.xticks[-1] - self.xticks[0]) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.yticks[0]) / (self.yticks[-1] - self.yticks[0]) * (HEIGHT - TOP - BOTTOM)


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round values that span [low, high]."""
    raw = (high - low or max(abs(high), 1.0)) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.floor(low / step) * step
    ticks = [first]
    while ticks[-1] < high - step * 1e-9 or len(ticks) < 2:
        ticks.append(first + len(ticks) * step)
    return ticks


def _mark(x: float, y: float, color: str, size: float = 3) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{color}"/>'


def _frame(plane: _Plane, x: str, y: str, about: str, body: str) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in plane.yticks:
        at = plane.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in plane.xticks:
        parts.append(f'<text x="{plane.x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:.4g}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{escape(about)}">'
        f"{''.join(parts)}{body}</svg>"
    )
