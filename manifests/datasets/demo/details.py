"""Draw the details of a demo garment: seams, plackets, pockets, belts, hems, collars and bows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import ImageDraw

from manifests.datasets.demo.attributes import NONE, Garment
from manifests.datasets.demo.fabric import RGB, draw_graphic, mix
from manifests.datasets.demo.shapes import Outline, Shape, ellipse

if TYPE_CHECKING:
    from manifests.datasets.demo.render import Canvas

PLACKETS = {"henley": 0.30, "polo": 0.27, "button up": 9.0}  # height of the lowest button
POCKETS: dict[str, tuple[int, ...]] = {"chest pocket": (1,), "two pockets": (1, -1)}  # sides
BELTS = {"belt": 0.022, "sash": 0.046, "bow": 0.016}  # half heights
WAIST, BOW = 0.45, 0.20  # heights of a belt and of a bow on a top


def edge_of(base: RGB) -> RGB:
    """Return the color of seams: darker than the cloth, or lighter on dark cloth."""
    return mix(base, (0, 0, 0), 0.32) if sum(base) > 180 else mix(base, (255, 255, 255), 0.30)


def box(half: float, top: float, bottom: float, x: float = 0.0) -> Outline:
    return [(x - half, top), (x + half, top), (x + half, bottom), (x - half, bottom)]


def draw_details(
    draw: ImageDraw.ImageDraw, canvas: Canvas, garment: Garment, outline: Shape, base: RGB, accent: RGB
) -> None:
    """Draw the details that end at the edge of the cloth."""
    edge, thin = edge_of(base), canvas.thin
    if garment["pattern"] == "color block":  # sleeves and yoke in the accent color
        draw.polygon(canvas.points(box(0.6, -0.1, 0.9)), fill=accent)
        draw.polygon(canvas.points([(-0.206, 0.2), (0.206, 0.2), (0.35, 0.9), (-0.35, 0.9)]), fill=base)
    for sleeve in outline.sleeves:
        draw.polygon(canvas.points(sleeve), outline=edge, width=thin)
    graphic = garment.get("graphic", NONE)
    if graphic != NONE:
        deep = "v neck" in garment.get("neckline", garment.get("style", ""))
        ((x, y),) = canvas.points([(0.0, 0.315 + 0.055 * deep - 0.04 * (garment.get("length") == "cropped"))])
        draw_graphic(draw, graphic, accent, base, x, y, canvas.unit * 0.098)
    down = PLACKETS.get(garment.get("style", ""), 9.0 if garment.get("trim") == "buttons" else 0.0)
    if down:
        _buttons(draw, canvas, min(down, outline.hem), base, edge)
    for side in POCKETS.get(garment.get("pocket", NONE), ()):
        x, y = side * 0.105, 0.27
        pocket = [(x - 0.055, y), (x + 0.055, y), (x + 0.055, y + 0.10), (x, y + 0.13), (x - 0.055, y + 0.10)]
        draw.polygon(canvas.points(pocket), fill=mix(base, edge, 0.22), outline=edge, width=thin + 1)
    waist = garment.get("waist", NONE)
    if waist != NONE:
        half = BELTS[waist]
        tone = (96, 58, 34) if waist == "belt" else mix(base, edge, 0.75)
        draw.polygon(canvas.points(box(0.4, WAIST - half, WAIST + half)), fill=tone)
        if waist == "belt":
            draw.polygon(canvas.points(box(0.03, 0.42, 0.48)), outline=(226, 190, 96), width=thin + 1)


def _buttons(draw: ImageDraw.ImageDraw, canvas: Canvas, down: float, base: RGB, edge: RGB) -> None:
    draw.polygon(canvas.points(box(0.026, -0.05, down)), fill=mix(base, edge, 0.18), outline=edge, width=canvas.thin)
    tone = (250, 248, 240) if sum(base) < 560 else (92, 84, 84)
    y = 0.085
    while y < down - 0.02:
        draw.polygon(canvas.points(ellipse(0.0, y, 0.017, 0.017)), fill=tone)
        y += 0.092


def draw_trimmings(
    draw: ImageDraw.ImageDraw, mask: ImageDraw.ImageDraw, canvas: Canvas, garment: Garment, outline: Shape, base: RGB
) -> None:
    """Draw the details that extend beyond the cloth, on the mask too: hems, collars, bows."""
    edge, thin = edge_of(base), canvas.thin

    def patch(points: Outline, fill: RGB, line: RGB | None = None) -> None:
        pixels = canvas.points(points)
        mask.polygon(pixels, fill=255)
        draw.polygon(pixels, fill=fill, outline=line, width=thin)

    hem, bottom, wide = garment.get("hem", garment.get("trim", NONE)), outline.hem, outline.bottom
    if hem == "ruffle hem":
        tone = mix(base, edge, 0.35)
        patch(
            [
                (-wide * 0.97, bottom - 0.07),
                (wide * 0.97, bottom - 0.07),
                (wide * 1.12, bottom + 0.01),
                (-wide * 1.12, bottom + 0.01),
            ],
            tone,
        )
        for i in range(7):
            patch(ellipse(wide * 1.12 * (2 * (i + 0.5) / 7 - 1), bottom + 0.01, wide * 0.16, 0.022), tone)
        for i in range(8):
            x = wide * (2 * i / 7 - 1)
            draw.line(canvas.points([(x * 0.96, bottom - 0.065), (x * 1.11, bottom + 0.02)]), fill=edge, width=thin)
        draw.line(
            canvas.points([(-wide * 0.97, bottom - 0.07), (wide * 0.97, bottom - 0.07)]), fill=edge, width=thin + 1
        )
    elif hem == "lace hem":
        tone = (250, 248, 242) if sum(base) < 600 else (170, 152, 142)
        draw.polygon(canvas.points(box(wide + 0.05, bottom - 0.045, bottom + 0.1)), fill=tone)
        for i in range(9):
            patch(ellipse(wide * (2 * (i + 0.5) / 9 - 1), bottom + 0.004, wide / 9, 0.026), tone)
        for i in range(19):
            draw.polygon(canvas.points(ellipse(wide * (2 * i / 18 - 1), bottom - 0.012, 0.009, 0.015)), fill=base)
    if garment.get("style") in ("polo", "button up"):
        for side in (1, -1):
            collar = [(0.012, 0.055), (0.098, -0.045), (0.125, 0.0), (0.085, 0.115)]
            patch([(side * x, y) for x, y in collar], mix(base, edge, 0.16), edge)
    elif garment["sleeve"] != "spaghetti straps":
        rim = canvas.points([p for p in outline.hole if p[1] > -0.03])
        mask.line(rim, fill=255, width=thin + 1, joint="curve")
        draw.line(rim, fill=edge, width=thin + 1, joint="curve")
    if "bow" in (garment.get("waist"), garment.get("trim")):
        y = WAIST if "waist" in garment else BOW
        tone = mix(base, edge, 0.75)
        knot = mix(tone, (0, 0, 0), 0.3)
        for side in (1, -1):
            for part in ([(0.0, 0.0), (0.030, 0.15), (0.078, 0.13)], [(0.0, 0.0), (0.105, -0.060), (0.118, 0.045)]):
                patch([(side * a, y + b) for a, b in part], tone, knot)
        patch(ellipse(0.0, y, 0.026, 0.028), knot)
