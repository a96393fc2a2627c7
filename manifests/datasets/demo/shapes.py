"""Outlines of the demo garments in body units: x = 0 is the middle, y = 0 the base of the neck, y grows downwards."""

from __future__ import annotations

import functools
from dataclasses import dataclass

Point = tuple[float, float]
Outline = list[Point]

SHOULDER, BUST, WAIST, HIP = 0.03, 0.25, 0.46, 0.66  # heights
HEMS = {
    "cropped": 0.44,
    "hip length": 0.66,
    "tunic length": 0.90,
    "mini": 0.88,
    "knee length": 1.07,
    "midi": 1.26,
    "maxi": 1.45,
}
WIDTHS = {  # half widths at bust, waist and hip, and spread of the hem per unit below the hip
    "fitted": (0.190, 0.138, 0.196, 0.00),
    "regular": (0.202, 0.192, 0.206, 0.02),
    "loose": (0.232, 0.246, 0.256, 0.04),
    "a-line": (0.194, 0.150, 0.225, 0.20),
    "flared": (0.192, 0.142, 0.290, 0.46),
}
SLEEVES = {"short sleeves": 0.30, "elbow sleeves": 0.58, "long sleeves": 1.0}  # covered share of the arm
CUTS = {
    "round neck": (0.105, 0.125),
    "v neck": (0.115, 0.270),
    "square neck": (0.125, 0.150),
    "boat neck": (0.150, 0.048),
}
ARM: tuple[Point, ...] = ((0.205, 0.075), (0.272, 0.370), (0.320, 0.690))  # shoulder joint, elbow, wrist


@dataclass(frozen=True)
class Shape:
    """Parts of a garment as closed outlines; ``hole`` is cut out of it."""

    body: Outline
    sleeves: tuple[Outline, ...]
    straps: tuple[Outline, ...]
    hole: Outline
    hem: float
    bottom: float  # half width at the hem


def smooth(points: Outline, steps: int = 6) -> Outline:
    """Return a Catmull-Rom curve through an open list of points."""
    padded = [points[0], *points, points[-1]]
    curve: Outline = []
    for (ax, ay), (bx, by), (cx, cy), (dx, dy) in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        for i in range(steps):
            t = i / steps
            t2, t3 = t * t, t * t * t
            a, b, c, d = -t3 + 2 * t2 - t, 3 * t3 - 5 * t2 + 2, -3 * t3 + 4 * t2 + t, t3 - t2
            curve.append(((a * ax + b * bx + c * cx + d * dx) / 2, (a * ay + b * by + c * cy + d * dy) / 2))
    return [*curve, points[-1]]


def mirrored(side: Outline) -> Outline:
    """Return the closed outline whose right half is ``side`` (from top to bottom)."""
    return [*side, *((-x, y) for x, y in reversed(side))]


def flip(outline: Outline) -> Outline:
    return [(-x, y) for x, y in outline]


def ellipse(x: float, y: float, rx: float, ry: float) -> Outline:
    circle = ((1, 0), (0.866, 0.5), (0.5, 0.866), (0, 1), (-0.5, 0.866), (-0.866, 0.5))
    return [(x + rx * a, y + ry * b) for a, b in (*circle, *((-a, -b) for a, b in circle))]


def limb(width_top: float, width_end: float, share: float, arm: tuple[Point, ...] = ARM) -> Outline:
    """Return the outline of the right arm (or of a sleeve over it) down to ``share`` of its length."""
    (ax, ay), (bx, by), (cx, cy) = arm
    upper, path = 0.5, [(ax, ay)]
    if share <= upper:
        path.append((ax + (bx - ax) * share / upper, ay + (by - ay) * share / upper))
    else:
        rest = (share - upper) / (1 - upper)
        path += [(bx, by), (bx + (cx - bx) * rest, by + (cy - by) * rest)]
    widths = [width_top + (width_end - width_top) * i / (len(path) - 1) for i in range(len(path))]
    outer = [(ax - 0.05, ay - 0.052), (ax + 0.75 * width_top, ay - 0.012)]  # a rounded shoulder
    outer += [(x + w, y - 0.18 * w) for (x, y), w in zip(path, widths, strict=True)][1:]
    inner = [(x - w, y + 0.18 * w) for (x, y), w in zip(path, widths, strict=True)]
    return [*smooth(outer, 4), *reversed(smooth(inner, 4))]


def torso(top: str, fit: str, hem: float) -> tuple[Outline, float]:
    """Return the right side of the body from the neck down to the hem, and the half width there."""
    bust, waist, hip, spread = WIDTHS[fit]
    if top == "spaghetti straps":
        head: Outline = [(0.0, 0.165), (0.085, 0.160), (0.150, 0.135), (0.168, 0.190)]
    elif top == "sleeveless":
        head = [(0.0, SHOULDER - 0.03), (0.095, SHOULDER - 0.022), (0.178, SHOULDER + 0.012), (0.158, 0.130)]
    else:
        head = [(0.0, SHOULDER - 0.03), (0.095, SHOULDER - 0.022), (0.205, SHOULDER + 0.022), (0.212, 0.130)]
    side: Outline = [head[-1], (bust, BUST)]
    for height, width in ((WAIST, waist), (HIP, hip)):
        if height < hem - 0.03:
            side.append((width, height))
    if hem <= HIP:
        bottom = waist + (hip - waist) * max(0.0, (hem - WAIST) / (HIP - WAIST)) if hem > WAIST else waist
    else:
        below = hem - HIP
        bottom = hip + spread * below * (0.75 if below > 0.5 else 1.0)
    side.append((bottom, hem))
    return [*head[:-1], *smooth(side), (bottom * 0.5, hem + 0.012), (0.0, hem + 0.016)], bottom


def neck_hole(neckline: str | None, strapped: bool) -> Outline:
    """Return the neck opening; between straps it starts lower and is narrower. None: just below a collar."""
    if neckline is None:
        return mirrored([(0.0, -0.05), (0.085, -0.05), *smooth([(0.082, 0.0), (0.0, 0.06)])])
    half, depth = CUTS[neckline]
    if strapped:
        half, depth = half * 0.78, depth + (0.085 if neckline in ("round neck", "square neck") else 0.0)
    if neckline == "v neck":
        return mirrored([(0.0, -0.05), (half, -0.05), (half * 0.92, 0.0), (0.0, depth)])
    if neckline == "square neck":
        return mirrored([(0.0, -0.05), (half, -0.05), (half * 0.96, depth), (0.0, depth)])
    curve = smooth([(half, 0.0), (half * 0.80, depth * 0.70), (0.0, depth)])
    return mirrored([(0.0, -0.05), (half + 0.005, -0.05), *curve])


@functools.lru_cache(maxsize=512)
def shape(sleeve: str, neckline: str | None, fit: str, hem: float) -> Shape:
    """Return the outlines of one garment. ``neckline`` None leaves room for a collar only."""
    body, bottom = torso(sleeve, fit, hem)
    sleeves: tuple[Outline, ...] = ()
    if sleeve in SLEEVES:
        wide = 0.018 if fit == "loose" else 0.0
        right = limb(0.066 + wide, 0.052 + wide, SLEEVES[sleeve])
        sleeves = (right, flip(right))
    straps: tuple[Outline, ...] = ()
    if sleeve == "spaghetti straps":
        strap = [(0.108, -0.005), (0.126, -0.004), (0.152, 0.150), (0.126, 0.160)]
        straps = (strap, flip(strap))
    return Shape(mirrored(body), sleeves, straps, neck_hole(neckline, bool(straps)), hem, bottom)
