"""Generate feedback texts that ask for changed values of a garment."""

from __future__ import annotations

import random
from collections.abc import Mapping

from manifests.datasets.demo.attributes import NONE, Garment, step
from manifests.datasets.demo.phrases import (
    ACCENTED,
    COLOUR_WORDS,
    COMPARED,
    FRAMES_BOTH,
    FRAMES_HAS,
    FRAMES_IS,
    HAS,
    IS,
    NOUNS,
    PHRASES,
    Words,
)

COMPARE, NEGATE, TWO_CAPTIONS = 0.40, 0.25, 0.30  # probabilities of a comparative, an "instead of" and a second caption


def feedback(
    category: str, wanted: Mapping[str, str], garment: Garment, reference: Garment | None, rng: random.Random
) -> tuple[str, ...]:
    """Return one or two captions that ask for the values ``wanted`` (field -> value), in the style of an annotator.

    ``garment``: all values of a garment that meets the request (its pattern or graphic names an accent color). With a
    ``reference`` image, a request may compare ("longer sleeves") or name the old value ("not blue but red"), but only
    if the answer is unique: one step is "longer", more steps are "much longer".
    """
    fields = list(wanted)
    rng.shuffle(fields)
    if rng.random() >= TWO_CAPTIONS:
        return (sentence(category, fields, wanted, garment, reference, rng),)
    if len(fields) > 1 and rng.random() < 0.5:
        parts = [fields[: len(fields) // 2], fields[len(fields) // 2 :]]
    else:
        parts = [fields, fields[::-1]]
    return tuple(sentence(category, part, wanted, garment, reference, rng) for part in parts)


def sentence(
    category: str,
    fields: list[str],
    wanted: Mapping[str, str],
    garment: Garment,
    reference: Garment | None,
    rng: random.Random,
) -> str:
    """Return a caption that asks for the given fields."""
    fields = _without_carried_accent(fields, wanted)
    said: Words = ([], [])  # type: ignore[assignment]
    for field in fields:
        kind, words = _request(category, field, wanted, garment, reference, rng)
        said[kind].append(words)  # type: ignore[attr-defined]
    frames = FRAMES_BOTH if said[IS] and said[HAS] else FRAMES_IS if said[IS] else FRAMES_HAS
    return rng.choice(frames).format(n=NOUNS[category], i=_join(said[IS]), h=_join(said[HAS]))


def _without_carried_accent(fields: list[str], wanted: Mapping[str, str]) -> list[str]:
    """Drop "accent" if the same caption asks for its pattern or graphic: "white polka dots"."""
    carriers = [f for f in ("graphic", "pattern") if f in fields and wanted[f] not in (NONE, "solid")]
    silent = wanted.get("accent") == NONE and len(fields) > 1  # a plain garment has no second color
    return [f for f in fields if f != "accent" or not (carriers or silent)]


def _join(parts: tuple[str, ...]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""


def _request(
    category: str,
    field: str,
    wanted: Mapping[str, str],
    garment: Garment,
    reference: Garment | None,
    rng: random.Random,
) -> tuple[int, str]:
    """Return one requested value as (IS or HAS, words)."""
    value = wanted[field]
    old = reference[field] if reference else None
    if old is not None and (compared := _comparative(category, field, old, value, rng)):
        return compared
    words = _words(field, value, wanted, garment)
    kind = rng.choice([k for k in (IS, HAS) if words[k]])
    said = rng.choice(words[kind])
    if reference is not None and old not in (None, value, NONE) and rng.random() < NEGATE:
        other = _words(field, old, {}, reference)[kind]
        if other:
            away = rng.choice(other)
            forms = (f"{said} instead of {away}", f"{said} rather than {away}", f"not {away} but {said}")
            said = rng.choice(forms if kind == IS else forms[:2])
    return kind, said


def _words(field: str, value: str, wanted: Mapping[str, str], garment: Garment) -> Words:
    """Return all words for a value, with the accent color filled in if it is requested too."""
    if field == "colour":
        return COLOUR_WORDS[value], tuple(f"{_article(w)} {w} color" for w in COLOUR_WORDS[value][:2])
    if field == "accent":
        if value == NONE:
            return PHRASES["pattern"]["solid"]
        carrier = garment["pattern"] if garment["pattern"] != "solid" else garment.get("graphic", NONE)
        noun = ACCENTED.get(carrier, "details")
        article = "" if noun.endswith("s") else f"{_article(value)} "
        return (), (f"{article}{value} {noun}", f"{value} as the second color")
    accent = wanted.get("accent", NONE)
    color = "" if accent == NONE else f"{accent} "
    is_words, has_words = PHRASES[field][value]
    if color and any("{c}" in w for w in has_words):
        return (), tuple(w.format(c=color) for w in has_words if "{c}" in w)
    return is_words, tuple(w.format(c="") for w in has_words)


def _comparative(category: str, field: str, old: str, new: str, rng: random.Random) -> tuple[int, str] | None:
    """Return a comparison with probability ``COMPARE`` if old and new value are on one scale, else None."""
    distance = step(category, field, old, new)
    if not distance or rng.random() >= COMPARE:
        return None
    words = COMPARED[field, 1 if distance > 0 else -1]
    kind = rng.choice((IS, HAS))
    said = rng.choice(words[kind])
    if abs(distance) > 1:
        said = f"much {said}" if kind == IS or not said.startswith("a ") else f"a much {said[2:]}"
    return kind, said


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
