"""Words for every value of a demo garment: adjectives (after "is", "make it") and nouns (after "with").

``{c}`` is replaced by the accent color and a space, or by nothing if the feedback does not ask for that color.
"""

from __future__ import annotations

from manifests.datasets.demo.attributes import NONE

IS, HAS = 0, 1
Words = tuple[tuple[str, ...], tuple[str, ...]]

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "white": ("white", "pure white", "off white"),
    "gray": ("gray", "grey", "silver gray"),
    "black": ("black", "jet black"),
    "pink": ("pink", "light pink", "rose pink"),
    "red": ("red", "bright red"),
    "burgundy": ("burgundy", "maroon", "wine red", "dark red"),
    "light blue": ("light blue", "sky blue", "baby blue"),
    "blue": ("blue", "royal blue", "bright blue"),
    "navy": ("navy", "navy blue", "dark blue"),
    "mint": ("mint", "mint green", "light green"),
    "green": ("green", "bright green"),
    "olive": ("olive", "olive green", "army green"),
    "lavender": ("lavender", "lilac", "light purple"),
    "purple": ("purple", "violet"),
    "yellow": ("yellow", "bright yellow"),
    "orange": ("orange", "bright orange"),
    "beige": ("beige", "sand colored", "tan"),
    "brown": ("brown", "chocolate brown"),
}

PHRASES: dict[str, dict[str, Words]] = {
    "sleeve": {
        "spaghetti straps": (("strappy",), ("spaghetti straps", "thin straps", "skinny shoulder straps")),
        "sleeveless": (("sleeveless", "without sleeves"), ("no sleeves",)),
        "short sleeves": (("short sleeved",), ("short sleeves",)),
        "elbow sleeves": (("half sleeved",), ("elbow length sleeves", "half sleeves", "sleeves to the elbow")),
        "long sleeves": (("long sleeved",), ("long sleeves", "full length sleeves", "sleeves down to the wrist")),
    },
    "length": {
        "mini": (("mini", "very short", "above the knee"), ("a mini skirt", "a hem above the knee")),
        "knee length": (("knee length",), ("a hem at the knee", "a knee length skirt")),
        "midi": (("midi length", "mid calf length"), ("a midi skirt", "a hem below the knee")),
        "maxi": (("maxi length", "ankle length", "floor length"), ("a maxi skirt", "a hem at the ankles")),
        "cropped": (("cropped", "waist length"), ("a cropped length", "a cropped hem")),
        "hip length": (("hip length", "regular length"), ("a hem at the hip",)),
        "tunic length": (("tunic length", "thigh length"), ("a tunic length", "a hem at the thigh")),
    },
    "neckline": {
        "round neck": (("round necked",), ("a round neck", "a scoop neckline")),
        "v neck": (("v necked",), ("a v neck", "a plunging neckline", "a v shaped neckline")),
        "square neck": (("square necked",), ("a square neck", "a square neckline")),
        "boat neck": (("boat necked",), ("a boat neck", "a high straight neckline")),
    },
    "style": {
        "crew neck tee": (("a crew neck tee", "a plain round neck tee"), ("a crew neck", "a round neck")),
        "v neck tee": (("a v neck tee",), ("a v neck", "a v shaped neckline")),
        "henley": (("a henley", "a henley shirt"), ("a henley neck", "a round neck with three buttons")),
        "polo": (("a polo", "a polo shirt"), ("a polo collar", "a polo neck")),
        "button up": (("a button up", "a button down shirt"), ("buttons all the way down", "a full button front")),
    },
    "fit": {
        "fitted": (("fitted", "tight", "body hugging"), ("a tight fit", "a slim silhouette")),
        "regular": (("straight cut",), ("a regular fit", "a straight fit")),
        "loose": (("loose", "baggy", "oversized"), ("a loose fit", "a relaxed fit")),
        "a-line": (("a line",), ("an a line skirt", "an a line shape")),
        "flared": (("flared", "flowy"), ("a flared shape", "a full flowing shape")),
    },
    "pattern": {
        "solid": (("solid", "plain", "a solid color"), ("no pattern", "a plain fabric")),
        "stripes": (("striped",), ("{c}stripes", "horizontal {c}stripes")),
        "pinstripes": (("pinstriped", "vertically striped"), ("vertical {c}stripes", "{c}pinstripes")),
        "polka dots": (("polka dotted", "spotted"), ("{c}polka dots", "{c}dots")),
        "checks": (("plaid", "checkered"), ("a {c}plaid pattern", "{c}checks")),
        "floral": (("floral", "flowery"), ("a {c}floral print", "{c}flowers all over")),
        "zigzag": (("zigzag patterned",), ("a {c}zigzag pattern", "{c}chevrons")),
        "color block": (("color blocked", "two tone"), ("{c}sleeves and shoulders", "a {c}color block")),
    },
    "graphic": {
        NONE: (("without a graphic", "without a logo"), ("no graphic", "no logo", "nothing on the chest")),
        "star": ((), ("a {c}star", "a {c}star on the chest", "a {c}star graphic")),
        "letters": ((), ("{c}letters", "{c}text on the chest", "{c}lettering")),
        "circle logo": ((), ("a {c}circle logo", "a round {c}logo on the chest")),
        "lightning bolt": ((), ("a {c}lightning bolt", "a {c}bolt graphic")),
        "mountain": ((), ("a {c}mountain", "a {c}mountain graphic")),
        "heart": ((), ("a {c}heart", "a {c}heart on the chest", "a {c}heart graphic")),
        "flower": ((), ("a single {c}flower", "one big {c}flower on the chest")),
    },
    "pocket": {
        NONE: (("without pockets",), ("no pocket", "no pockets")),
        "chest pocket": ((), ("a chest pocket", "one pocket", "a single pocket")),
        "two pockets": ((), ("two pockets", "a pair of pockets")),
    },
    "waist": {
        NONE: (("without a belt",), ("no belt", "nothing around the waist")),
        "belt": (("belted",), ("a belt", "a leather belt")),
        "bow": ((), ("a bow", "a bow at the waist")),
        "sash": ((), ("a sash", "a wide band at the waist")),
    },
    "hem": {
        NONE: (("without trim",), ("a plain hem", "no trim")),
        "lace hem": (("lace trimmed",), ("a lace hem", "lace at the bottom")),
        "ruffle hem": (("ruffled",), ("a ruffle hem", "ruffles at the bottom")),
    },
    "trim": {
        NONE: (("without details",), ("no trim", "no details")),
        "lace hem": (("lace trimmed",), ("a lace hem", "lace at the bottom")),
        "bow": ((), ("a bow", "a ribbon bow on the chest")),
        "buttons": ((), ("buttons", "a row of buttons")),
    },
}

ACCENTED = {  # noun of the pattern or graphic that has the accent color
    "stripes": "stripes",
    "pinstripes": "stripes",
    "polka dots": "dots",
    "checks": "checks",
    "floral": "flowers",
    "zigzag": "zigzags",
    "color block": "shoulders",
    "star": "star",
    "letters": "letters",
    "circle logo": "logo",
    "lightning bolt": "bolt",
    "mountain": "mountain",
    "heart": "heart",
    "flower": "flower",
}

# (field, direction) -> comparative words
COMPARED: dict[tuple[str, int], Words] = {
    ("colour", 1): (("darker", "darker in color", "deeper in color"), ("a darker shade", "a darker color")),
    ("colour", -1): (("lighter", "lighter in color", "paler"), ("a lighter shade", "a lighter color")),
    ("sleeve", 1): (("longer sleeved",), ("longer sleeves",)),
    ("sleeve", -1): (("shorter sleeved",), ("shorter sleeves",)),
    ("length", 1): (("longer", "longer in length"), ("a longer hem", "a longer cut")),
    ("length", -1): (("shorter", "shorter in length"), ("a shorter hem", "a shorter cut")),
    ("fit", 1): (("looser", "flowier", "more relaxed"), ("a looser shape", "a fuller shape")),
    ("fit", -1): (("tighter", "more fitted", "slimmer"), ("a tighter shape", "a slimmer cut")),
}
NOUNS = {"dress": "dress", "shirt": "shirt", "toptee": "top"}

# sentence frames: {n} the category's noun, {i} adjectives, {h} nouns
FRAMES_IS = (
    "is {i}",
    "{i}",
    "make it {i}",
    "it should be {i}",
    "i want it to be {i}",
    "show me one that is {i}",
    "the same but {i}",
)[:11]
FRAMES_HAS = (
    "has {h}",
    "with {h}",
    "i want {h}",
    "give it {h}",
    "it should have {h}",
    "i would like {h}",
    "show me one with {h}",
    "the same but with {h}",
    "a {n} with {h}",
    "i am looking for {h}",
    "needs {h}",
)
FRAMES_BOTH = (
    "is {i} with {h}",
    "is {i} and has {h}",
    "make it {i} with {h}",
    "i want it {i} with {h}",
    "has {h} and is {i}",
    "the same but {i} with {h}",
    "a {n} that is {i} and has {h}",
    "{i} with {h}",
)
