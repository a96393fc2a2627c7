"""Attributes of the demo garments: fields of each category, their values, and the valid combinations.

A garment is a ``dict`` field -> value in the field order of its category. The values are English words, used in the
attribute file too.
"""

from __future__ import annotations

import random

Garment = dict[str, str]

# name -> (family, shade 0 light .. 2 dark, RGB). "darker" and "lighter" stay within a family.
COLORS: dict[str, tuple[str, int, tuple[int, int, int]]] = {
    "white": ("neutral", 0, (244, 243, 239)),
    "gray": ("neutral", 1, (150, 152, 156)),
    "black": ("neutral", 2, (42, 42, 47)),
    "pink": ("red", 0, (244, 166, 190)),
    "red": ("red", 1, (208, 38, 45)),
    "burgundy": ("red", 2, (112, 22, 44)),
    "light blue": ("blue", 0, (158, 203, 238)),
    "blue": ("blue", 1, (42, 104, 208)),
    "navy": ("blue", 2, (27, 39, 88)),
    "mint": ("green", 0, (168, 226, 196)),
    "green": ("green", 1, (38, 152, 76)),
    "olive": ("green", 2, (92, 97, 42)),
    "lavender": ("purple", 0, (199, 177, 232)),
    "purple": ("purple", 1, (122, 56, 168)),
    "yellow": ("yellow", 1, (247, 213, 66)),
    "orange": ("orange", 1, (238, 124, 34)),
    "beige": ("brown", 0, (221, 200, 165)),
    "brown": ("brown", 2, (112, 70, 42)),
}
ACCENTS = ("white", "black", "red", "yellow", "blue", "pink", "green")

# Fields with ordered values, ascending: feedback can ask for "longer sleeves" or "a tighter one".
ORDERED = ("sleeve", "length", "fit")
SLEEVES = ("spaghetti straps", "sleeveless", "short sleeves", "elbow sleeves", "long sleeves")
PATTERNS = ("solid", "stripes", "pinstripes", "polka dots", "checks", "floral", "zigzag")
NONE = "none"  # the value of a field that does not apply, or of an absent detail

FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "dress": {
        "colour": tuple(COLORS),
        "sleeve": SLEEVES,
        "length": ("mini", "knee length", "midi", "maxi"),
        "neckline": ("round neck", "v neck", "square neck", "boat neck"),
        "fit": ("fitted", "a-line", "flared"),
        "pattern": PATTERNS,
        "waist": (NONE, "belt", "bow", "sash"),
        "hem": (NONE, "lace hem", "ruffle hem"),
        "accent": (NONE, *ACCENTS),
    },
    "shirt": {
        "colour": tuple(COLORS),
        "sleeve": SLEEVES[1:],
        "style": ("crew neck tee", "v neck tee", "henley", "polo", "button up"),
        "fit": ("fitted", "regular", "loose"),
        "pattern": (*PATTERNS[:5], "color block"),
        "graphic": (NONE, "star", "letters", "circle logo", "lightning bolt", "mountain"),
        "pocket": (NONE, "chest pocket", "two pockets"),
        "accent": (NONE, *ACCENTS),
    },
    "toptee": {
        "colour": tuple(COLORS),
        "sleeve": SLEEVES,
        "length": ("cropped", "hip length", "tunic length"),
        "neckline": ("round neck", "v neck", "square neck", "boat neck"),
        "fit": ("fitted", "regular", "flared"),
        "pattern": PATTERNS,
        "graphic": (NONE, "heart", "flower", "letters", "star"),
        "trim": (NONE, "lace hem", "bow", "buttons"),
        "accent": (NONE, *ACCENTS),
    },
}
CATEGORIES = tuple(FIELDS)


def needs_accent(garment: Garment) -> bool:
    """Return whether the garment shows a second color, that of a pattern or a graphic."""
    return garment["pattern"] != "solid" or garment.get("graphic", NONE) != NONE


def _contrast(color: str, accent: str) -> bool:
    (family, _, a), (other, _, b) = COLORS[color], COLORS[accent]
    return family != other and sum(abs(x - y) for x, y in zip(a, b, strict=True)) >= 115


SEEN_ON = {colour: frozenset(a for a in ACCENTS if _contrast(colour, a)) for colour in COLORS}  # visible accents


def problem(garment: Garment) -> str | None:
    """Return the reason that the combination of values is invalid, or None for a garment that can be drawn."""
    if needs_accent(garment) != (garment["accent"] != NONE):
        return "an accent color needs a pattern or a graphic, and the other way round"
    if garment["accent"] != NONE and garment["accent"] not in SEEN_ON[garment["colour"]]:
        return "the accent would vanish on the garment's own color"
    if garment.get("graphic", NONE) != NONE and garment["pattern"] not in ("solid", "color block"):
        return "a graphic needs a plain chest"
    if garment.get("pocket", NONE) != NONE and garment.get("graphic", NONE) != NONE:
        return "a pocket covers the graphic"
    if garment.get("style") in ("polo", "button up", "henley") and garment.get("graphic", NONE) != NONE:
        return "a placket cuts through the graphic"
    if garment.get("trim") in ("buttons", "bow") and garment.get("graphic", NONE) != NONE:
        return "buttons or a bow cover the graphic"
    return None


def random_garment(category: str, rng: random.Random) -> Garment:
    """Return a random valid garment; solid and patterned ones are about equally frequent."""
    while True:
        garment = {field: rng.choice(values) for field, values in FIELDS[category].items()}
        if rng.random() < 0.4:
            garment["pattern"] = "solid"
        if not needs_accent(garment):
            garment["accent"] = NONE
        if problem(garment) is None:
            return garment


def step(category: str, field: str, old: str, new: str) -> int:
    """Return the number of steps from ``old`` to ``new`` on the field's scale; 0 if they cannot be compared.

    Colors compare within a family (darker is higher), sleeves only if both garments have sleeves.
    """
    if field == "colour":
        (family, low, _), (other, high, _) = COLORS[old], COLORS[new]
        return high - low if family == other else 0
    if field not in ORDERED or (field == "sleeve" and not (old.endswith("sleeves") and new.endswith("sleeves"))):
        return 0
    order = FIELDS[category][field]
    return order.index(new) - order.index(old)
