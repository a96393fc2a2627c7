"""Draw the cloth: patterns, graphics and soft light."""

from __future__ import annotations

import functools
import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

RGB = tuple[int, int, int]


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """Mix color ``a`` with ``share`` of color ``b``."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def draw_pattern(cloth: Image.Image, pattern: str, accent: RGB, unit: float, rng: random.Random) -> None:
    """Cover ``cloth`` (a plain RGB image) with a pattern. ``unit`` is the length of one body unit in pixels."""
    width, height = cloth.size
    draw = ImageDraw.Draw(cloth)
    base: RGB = cloth.getpixel((0, 0))  # type: ignore[assignment]
    jitter = rng.uniform(0.92, 1.08)
    if pattern in ("stripes", "pinstripes"):
        gap = unit * (0.112 if pattern == "stripes" else 0.075) * jitter
        line = gap * (0.46 if pattern == "stripes" else 0.30)
        at = rng.uniform(-gap, 0)
        while at < (height if pattern == "stripes" else width):
            box = (0, at, width, at + line) if pattern == "stripes" else (at, 0, at + line, height)
            draw.rectangle(box, fill=accent)
            at += gap
    elif pattern == "polka dots":
        gap, radius = unit * 0.118 * jitter, unit * 0.034
        y, row = rng.uniform(-gap, 0), 0
        while y < height + radius:
            x = rng.uniform(-0.05, 0.05) * gap - (gap / 2 if row % 2 else 0)
            while x < width + radius:
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=accent)
                x += gap
            y, row = y + gap * 0.66, row + 1
    elif pattern == "checks":
        gap = unit * 0.135 * jitter
        half = mix(base, accent, 0.5)
        for fill, across in ((half, True), (half, False)):
            at = rng.uniform(-gap, 0)
            while at < max(width, height):
                box = (at, 0, at + gap / 2, height) if across else (0, at, width, at + gap / 2)
                draw.rectangle(box, fill=fill)
                at += gap
        x0, y0 = rng.uniform(-gap, 0), rng.uniform(-gap, 0)
        for i in range(int(max(width, height) / gap) + 2):  # thin lines of the full accent: a tartan
            x, y = x0 + i * gap, y0 + i * gap
            draw.rectangle((x, 0, x + gap * 0.14, height), fill=accent)
            draw.rectangle((0, y, width, y + gap * 0.14), fill=accent)
    elif pattern == "floral":
        gap, petal = unit * 0.17 * jitter, unit * 0.034
        heart = mix(accent, (255, 214, 70), 0.75)
        leaf = mix(base, (60, 140, 70), 0.6)
        y, row = rng.uniform(-gap, 0), 0
        while y < height + gap:
            x = -(gap / 2 if row % 2 else 0)
            while x < width + gap:
                cx, cy = x + rng.uniform(-0.2, 0.2) * gap, y + rng.uniform(-0.2, 0.2) * gap
                turn = rng.uniform(0, 1.2)
                draw.ellipse((cx + petal, cy + petal, cx + 2.6 * petal, cy + 1.9 * petal), fill=leaf)
                for k in range(5):
                    px = cx + petal * 1.05 * math.cos(turn + k * 1.2566)
                    py = cy + petal * 1.05 * math.sin(turn + k * 1.2566)
                    draw.ellipse((px - petal * 0.8, py - petal * 0.8, px + petal * 0.8, py + petal * 0.8), fill=accent)
                draw.ellipse((cx - petal * 0.5, cy - petal * 0.5, cx + petal * 0.5, cy + petal * 0.5), fill=heart)
                x += gap
            y, row = y + gap * 0.8, row + 1
    elif pattern == "zigzag":
        gap, tooth = unit * 0.125 * jitter, unit * 0.075
        y = rng.uniform(-gap, 0)
        while y < height + tooth:
            points = [
                (i * tooth, y + (tooth * 0.55 if i % 2 else -tooth * 0.55)) for i in range(int(width / tooth) + 2)
            ]
            draw.line(points, fill=accent, width=max(1, round(gap * 0.38)), joint="curve")
            y += gap


def draw_graphic(draw: ImageDraw.ImageDraw, graphic: str, accent: RGB, base: RGB, x: float, y: float, r: float) -> None:
    """Draw a chest graphic with center (x, y) and radius ``r``, all in pixels."""
    if graphic == "star":
        ring = [(r * 1.15 if i % 2 == 0 else r * 0.48, -math.pi / 2 + i * math.pi / 5) for i in range(10)]
        draw.polygon([(x + a * math.cos(t), y + a * math.sin(t)) for a, t in ring], fill=accent)
    elif graphic == "circle logo":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=accent)
        draw.ellipse((x - r * 0.58, y - r * 0.58, x + r * 0.58, y + r * 0.58), fill=base)
        draw.ellipse((x - r * 0.28, y - r * 0.28, x + r * 0.28, y + r * 0.28), fill=accent)
    elif graphic == "heart":
        for side in (-0.5, 0.5):
            cx = x + side * r
            draw.ellipse((cx - r * 0.56, y - r * 0.92, cx + r * 0.56, y + r * 0.20), fill=accent)
        draw.polygon([(x - r * 1.0, y - r * 0.16), (x + r * 1.0, y - r * 0.16), (x, y + r * 1.05)], fill=accent)
    elif graphic == "flower":
        for k in range(6):
            px, py = x + r * 0.62 * math.cos(k * 1.0472), y + r * 0.62 * math.sin(k * 1.0472)
            draw.ellipse((px - r * 0.42, py - r * 0.42, px + r * 0.42, py + r * 0.42), fill=accent)
        draw.ellipse((x - r * 0.36, y - r * 0.36, x + r * 0.36, y + r * 0.36), fill=base)
    elif graphic == "letters":
        stroke = max(1, round(r * 0.30))
        for k, glyph in enumerate(("A", "N", "E")):
            left, top, wide, tall = x + (k - 1.5) * r * 0.86, y - r * 0.62, r * 0.62, r * 1.24
            letters: dict[str, list[tuple[float, float]]] = {
                "A": [(0, 1), (0.5, 0), (1, 1)],
                "N": [(0, 1), (0, 0), (1, 1), (1, 0)],
                "E": [(1, 0), (0, 0), (0, 1), (1, 1)],
            }
            draw.line(
                [(left + a * wide, top + b * tall) for a, b in letters[glyph]], fill=accent, width=stroke, joint="curve"
            )
            if glyph != "N":
                draw.line([(left + wide * 0.15, y + r * 0.12), (left + wide * 0.85, y + r * 0.12)], accent, stroke)
    elif graphic == "lightning bolt":
        bolt = [(0.25, -1.2), (-0.65, 0.15), (-0.08, 0.15), (-0.35, 1.2), (0.65, -0.30), (0.06, -0.30)]
        draw.polygon([(x + a * r, y + b * r) for a, b in bolt], fill=accent)
    elif graphic == "mountain":
        draw.polygon(
            [(x - r * 1.25, y + r * 0.75), (x - r * 0.35, y - r * 0.75), (x + r * 0.55, y + r * 0.75)], fill=accent
        )
        draw.polygon(
            [(x - r * 0.1, y + r * 0.75), (x + r * 0.62, y - r * 0.25), (x + r * 1.3, y + r * 0.75)], fill=accent
        )
        peak = [(-0.35, -0.75), (-0.60, -0.32), (-0.35, -0.45), (-0.10, -0.32)]
        draw.polygon([(x + a * r, y + b * r) for a, b in peak], fill=base)


@functools.lru_cache(maxsize=16)
def light(size: int, variant: int) -> Image.Image:
    """Return a soft light map (RGB, multiplicative): darker sides, a few vertical folds; ``variant`` moves them."""
    rng = np.random.default_rng(variant)
    y, x = np.mgrid[0:size, 0:size] / size
    flank = 1.0 - 0.75 * (x - 0.5 + rng.uniform(-0.05, 0.05)) ** 2
    folds = np.zeros_like(x)
    for _ in range(5):
        center, lean, wide = rng.uniform(0.3, 0.7), rng.uniform(-0.08, 0.08), rng.uniform(0.008, 0.02)
        start = rng.uniform(0.3, 0.6)
        ramp = np.clip((y - start) / 0.3, 0, 1)
        folds += 0.10 * ramp * np.exp(-(((x - center - lean * (y - 0.5)) / wide) ** 2))
    shade = np.clip(flank - folds, 0.55, 1.0) * (1.02 - 0.10 * y)
    image = Image.fromarray((np.clip(shade, 0, 1) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(size / 160))
    return Image.merge("RGB", (image, image, image))


@functools.lru_cache(maxsize=32)
def backdrop(size: int, variant: int) -> Image.Image:
    """Return a studio background: a light tone, brighter behind the figure, with a faint floor."""
    tones = ((242, 242, 240), (232, 235, 240), (241, 235, 226), (230, 237, 232), (238, 231, 236), (224, 227, 231))
    tone = np.array(tones[variant % len(tones)], dtype=np.float64)
    y, x = np.mgrid[0:size, 0:size] / size
    glow = 1.03 - 0.22 * ((x - 0.5) ** 2 + (y - 0.42) ** 2) - 0.03 * (y > 0.93)
    return Image.fromarray(np.clip(tone * glow[..., None], 0, 255).astype(np.uint8))
