"""Draw a garment on a mannequin: rendered at three times the size and averaged down for smooth edges."""

from __future__ import annotations

import random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from manifests.datasets.demo.attributes import COLORS, NONE, Garment
from manifests.datasets.demo.details import draw_details, draw_trimmings
from manifests.datasets.demo.fabric import RGB, backdrop, draw_pattern, light
from manifests.datasets.demo.shapes import ARM, HEMS, Outline, Shape, ellipse, flip, limb, mirrored, shape, smooth

OVERSAMPLE = 3
SKINS: tuple[RGB, ...] = ((222, 209, 196), (212, 201, 192), (228, 218, 209), (204, 195, 189))  # painted mannequins
FRAMES = {"dress": (0.60, 1.10, 0.105), "shirt": (0.88, 1.0, 0.135), "toptee": (0.88, 1.0, 0.135)}
"""Category -> share of the image that one body unit takes, extra width, height of the neck."""

_CHEST = smooth([(0.20, 0.12), (0.175, 0.25), (0.135, 0.46), (0.185, 0.66), (0.18, 0.8)])
_LEG: Outline = [(0.012, 0.74), (0.185, 0.70), (0.15, 1.1), (0.12, 1.3), (0.08, 1.6), (0.03, 1.6), (0.025, 1.1)]
_HAND = ellipse(ARM[-1][0] + 0.008, ARM[-1][1] + 0.035, 0.032, 0.05)
_ARM = limb(0.052, 0.030, 1.0)
_BODY: tuple[Outline, ...] = (
    mirrored([(0.0, -0.13), (0.052, -0.13), (0.056, 0.0), (0.0, 0.02)]),
    mirrored([(0.0, -0.02), (0.06, -0.02), (0.19, 0.035), *_CHEST, (0.0, 0.8)]),
    *(_ARM, flip(_ARM), _HAND, flip(_HAND)),
)
_MANNEQUIN = {"dress": (*_BODY, _LEG, flip(_LEG)), "shirt": _BODY, "toptee": _BODY}


class Canvas:
    """Map of body units to pixels, with the small differences in position and size of real photographs."""

    def __init__(self, category: str, size: int, rng: random.Random):
        self.size = size * OVERSAMPLE
        scale, wide, top = FRAMES[category]
        self.unit = self.size * scale * rng.uniform(0.975, 1.025)
        self.wide = wide * rng.uniform(0.985, 1.015)
        self.x = self.size * (0.5 + rng.uniform(-0.016, 0.016))
        self.y = self.size * (top + rng.uniform(-0.012, 0.012))
        self.lean = rng.uniform(-0.02, 0.02)
        self.thin = max(1, round(self.size / 150))

    def points(self, outline: Outline) -> list[tuple[float, float]]:
        sx, sy, lean, unit, wide = self.x, self.y, self.lean, self.unit, self.wide
        return [(sx + (x * wide + lean * y) * unit, sy + y * unit) for x, y in outline]


def garment_shape(category: str, garment: Garment) -> Shape:
    """Return the outlines of a garment."""
    if category == "shirt":
        neckline = {"polo": None, "button up": None, "v neck tee": "v neck"}.get(garment["style"], "round neck")
        return shape(garment["sleeve"], neckline, garment["fit"], 0.74)
    return shape(garment["sleeve"], garment["neckline"], garment["fit"], HEMS[garment["length"]])


def render(category: str, garment: Garment, size: int, rng: random.Random) -> Image.Image:
    """Render an RGB image of ``size`` x ``size`` pixels. The same generator state gives the same image."""
    canvas = Canvas(category, size, rng)
    outline = garment_shape(category, garment)
    base = _shade(COLORS[garment["colour"]][2], rng)
    accent = _shade(COLORS[garment["accent"]][2], rng) if garment["accent"] != NONE else base
    whole = (canvas.size, canvas.size)

    mask = Image.new("L", whole, 0)
    pen = ImageDraw.Draw(mask)
    for part in (*outline.sleeves, outline.body):
        pen.polygon(canvas.points(part), fill=255)
    pen.polygon(canvas.points(outline.hole), fill=0)
    for part in outline.straps:
        pen.polygon(canvas.points(part), fill=255)

    cloth = Image.new("RGB", whole, base)
    draw_pattern(cloth, garment["pattern"], accent, canvas.unit, rng)
    draw = ImageDraw.Draw(cloth)
    draw_details(draw, canvas, garment, outline, base, accent)
    draw_trimmings(draw, pen, canvas, garment, outline, base)

    figure = Image.new("L", whole, 0)
    pen = ImageDraw.Draw(figure)
    for part in _MANNEQUIN[category]:
        pen.polygon(canvas.points(part), fill=255)

    cloth, mask, figure = (layer.reduce(OVERSAMPLE) for layer in (cloth, mask, figure))
    cloth = ImageChops.multiply(cloth, light(size, rng.randrange(8)))
    picture = backdrop(size, rng.randrange(6)).copy()
    picture.paste(rng.choice(SKINS), (0, 0), figure)
    offset = max(1, round(size * 0.014))
    shadow = mask.filter(ImageFilter.BoxBlur(size / 60)).point(_SHADOW)
    picture.paste((70, 66, 70), (offset, offset), shadow)
    picture.paste(cloth, (0, 0), mask)
    return picture


_SHADOW = [round(v * 0.25) for v in range(256)]


def _shade(color: RGB, rng: random.Random) -> RGB:
    """Return the color with the variation of a photograph: slightly lighter, darker or tinted."""
    gain = 1 + rng.uniform(-0.05, 0.05)
    r, g, b = (max(0, min(255, round(c * gain + rng.uniform(-5, 5)))) for c in color)
    return r, g, b
