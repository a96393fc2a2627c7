"""Generate the demo's sessions: users never withdraw a request, and retrieved images lose earlier requests.

Garments form families: one base garment and a few fields that vary over two or three values each. A session stays
within a family. Its user asks for one or two new values per turn and never withdraws a request. The retrieved image
meets the current request but loses earlier ones, and unmentioned fields drift. The final target meets the requests of
all turns and equals the last reference image in every other field. So a query of the last turn alone misses the lost
requests, a query of the first image with all captions misses the drift, and the family contains the images that both
retrieve instead (paper Figure 5 shows the same failure on real images).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from manifests.datasets.demo.attributes import ACCENTS, FIELDS, NONE, Garment, needs_accent, problem, random_garment

VERSION = 1  # version of the code that determines images and texts; part of the stamp

VALUES = (3, 3, 2, 2, 2, 2)  # number of values of each varying field of a family
LENGTHS = {2: 0.35, 3: 0.40, 4: 0.25}  # turns of a session: share
TWO_REQUESTS = {2: 0.75, 3: 0.45, 4: 0.25}  # turns of a session: probability that a turn asks for two fields
LOSS = 0.6  # probability per turn that an earlier request, met so far, is lost
MISS = 0.5  # probability that one of two requests of a turn is not met at once
DRIFT = {1: 0.6, 2: 0.4}  # unrequested changes of fields per turn: share
FORGETFUL = 0.9  # share of sessions whose last reference misses an earlier request
TRIES = 16  # drafts of the next image; one that the family already has is preferred

LONGEST = max(LENGTHS)
Requests = dict[str, str]


@dataclass(frozen=True)
class Kind:
    """Kind of sessions; the default is the demo's.

    ``longest``: turns of the longest sessions, up to 10. Above 4, lengths are uniform from 2 to it, more fields vary and
    a turn asks for one field. ``retract``: probability that a turn from the third on replaces an earlier request.
    """

    longest: int = LONGEST
    retract: float = 0.0

    @property
    def long(self) -> bool:
        """Whether sessions are longer than the demo's; their stories are drawn turn by turn (``_long_story``)."""
        return self.longest > LONGEST

    @property
    def lengths(self) -> dict[int, float]:
        """Turns of a session: share."""
        if self.long:
            return dict.fromkeys(range(2, self.longest + 1), 1.0)
        return {n: share for n, share in LENGTHS.items() if n <= self.longest}


DEMO = Kind()


@dataclass(frozen=True)
class Story:
    """Session without images: garments I_1 .. I_N and the target, and the requests of each turn."""

    category: str
    garments: tuple[Garment, ...]
    requests: tuple[Requests, ...]

    @property
    def wanted(self) -> Requests:
        """All requests of the session."""
        return {f: v for turn in self.requests for f, v in turn.items()}

    @property
    def lost(self) -> tuple[str, ...]:
        """Fields requested before the last turn whose requested value the last reference image lacks."""
        last = self.requests[-1]
        early = {f: v for turn in self.requests[:-1] for f, v in turn.items() if f not in last}
        return tuple(f for f, v in early.items() if self.garments[-2][f] != v)


@dataclass
class Family:
    """Base garment and its varying fields; ``garments``: members in the catalog; ``taken``: those of other families,
    which sessions avoid."""

    category: str
    base: Garment
    values: dict[str, tuple[str, ...]]
    garments: list[Garment] = field(default_factory=list)
    known: set[tuple[str, ...]] = field(default_factory=set)
    taken: Set[tuple[str, ...]] = frozenset()
    kind: Kind = DEMO

    def free(self, garment: Garment) -> bool:
        """Return whether no other family has the garment."""
        return tuple(garment.values()) not in self.taken

    def has(self, garment: Garment) -> bool:
        return tuple(garment.values()) in self.known

    def add(self, garment: Garment) -> None:
        if not self.has(garment):
            self.known.add(tuple(garment.values()))
            self.garments.append(garment)

    def draw(self, rng: random.Random) -> Garment:
        """Return a random member of the family that can be drawn."""
        while True:
            garment = {**self.base, **{f: rng.choice(v) for f, v in self.values.items()}}
            if problem(garment) is None and self.free(garment):
                return garment


def make_family(
    category: str, rng: random.Random, kind: Kind = DEMO, taken: Set[tuple[str, ...]] = frozenset()
) -> Family:
    """Return a family of a random base garment; color and five more fields vary, accents only if always visible.

    For long sessions every field varies.
    """
    counts = (3,) * len(FIELDS[category]) if kind.long else VALUES
    while True:
        base = random_garment(category, rng)
        names = [f for f in base if f not in ("colour", "accent")]
        free = ["colour", *rng.sample(names, min(len(names), len(counts) - 1))]
        if base["accent"] != NONE and rng.random() < 0.6:
            free[-1] = "accent"
        values = {}
        for name, count in zip(free, counts, strict=False):
            choices = [v for v in FIELDS[category][name] if v != base[name] and v != (NONE if name == "accent" else "")]
            values[name] = (base[name], *rng.sample(choices, min(count - 1, len(choices))))
        family = Family(category, base, {f: values[f] for f in FIELDS[category] if f in values}, taken=taken, kind=kind)
        members = [{**base, **{f: rng.choice(v) for f, v in family.values.items()}} for _ in range(100)]
        least = 20 if kind.long else 60  # enough combinations that can be drawn
        if sum(problem(m) is None and family.free(m) for m in members) >= least:
            return family


def write_story(family: Family, turns: int, rng: random.Random) -> Story | None:
    """Draw a session of ``turns`` turns in a family; None if the random draws lead to no valid session."""
    garment = rng.choice(family.garments) if family.garments else family.draw(rng)
    garments, requests = [garment], []
    wanted: Requests = {}
    for turn in range(1, turns + 1):
        asked = _ask(family, garment, wanted, turns, rng)
        if asked is None:
            return None
        earlier, wanted = wanted, {**wanted, **asked}
        if turn == turns:
            garment = {**garment, **wanted}
            if problem(garment) or not family.free(garment):
                return None
        else:
            retrieved = _retrieve(family, garment, asked, earlier, rng)
            if retrieved is None or retrieved in garments:
                return None
            garment = retrieved
        garments.append(garment)
        requests.append(asked)
    return Story(family.category, tuple(garments), tuple(requests))


def _long_story(family: Family, turns: int, rng: random.Random) -> Story | None:
    """Draw a session like ``write_story``, with every turn drawn again until it fits; None if a turn never fits.

    After every turn the image with all requests so far is a valid garment, so no later turn can fail for that reason.
    To draw whole sessions until one fits takes time exponential in the number of turns.
    """
    garment = rng.choice(family.garments) if family.garments else family.draw(rng)
    garments, requests = [garment], []
    wanted: Requests = {}
    found: Garment | None
    for turn in range(1, turns + 1):
        for _ in range(TRIES):
            asked = _ask(family, garment, wanted, turns, rng)
            every = {**wanted, **(asked or {})}
            if asked is None or problem({**garment, **every}):
                continue
            if turn == turns:
                found = {**garment, **every}
                fits = family.free(found)
            else:
                found = _retrieve(family, garment, asked, wanted, rng)
                fits = found is not None and found not in garments and problem({**found, **every}) is None
            if found is not None and fits:
                break
        else:
            return None
        garment, wanted = found, every
        garments.append(garment)
        requests.append(asked)
    return Story(family.category, tuple(garments), tuple(requests))


def _ask(family: Family, garment: Garment, wanted: Requests, turns: int, rng: random.Random) -> Requests | None:
    """Draw new values for one or two fields not requested yet; a new pattern comes with its accent color."""
    open_fields = [f for f in family.values if f not in wanted]
    count = 2 if rng.random() < TWO_REQUESTS.get(turns, 0.0) else 1
    if family.kind.retract and len(wanted) > 1 and rng.random() < family.kind.retract:
        return _retraction(family, garment, wanted, rng)
    if len(open_fields) <= count:
        return _retraction(family, garment, wanted, rng) if family.kind.long else None
    for _ in range(20):
        asked = {f: rng.choice(family.values[f]) for f in rng.sample(open_fields, count)}
        after = {**garment, **asked}
        if any(garment[f] == v for f, v in asked.items()):
            continue
        if needs_accent(after) != (
            after["accent"] != NONE
        ):  # the accent color comes and goes with its pattern or graphic
            if "accent" in wanted or "accent" in asked:
                continue
            after["accent"] = asked["accent"] = rng.choice(ACCENTS) if needs_accent(after) else NONE
        if problem(after) is None:
            return asked
    return _retraction(family, garment, wanted, rng) if family.kind.long else None


def _retraction(family: Family, garment: Garment, wanted: Requests, rng: random.Random) -> Requests | None:
    """Draw another value for a field that was requested earlier; None if no draw is valid."""
    names = [f for f in wanted if f in family.values and f != "accent"]
    for _ in range(20 if names else 0):
        name = rng.choice(names)
        asked = {name: rng.choice(family.values[name])}
        after = {**garment, **asked}
        new = asked[name] not in (wanted[name], garment[name])
        if new and problem(after) is None and needs_accent(after) == needs_accent(garment):
            return asked
    return None


def _retrieve(
    family: Family, garment: Garment, asked: Requests, earlier: Requests, rng: random.Random
) -> Garment | None:
    """Return the next image: of several drafts, one that the family already has, else the first that can be drawn."""
    fallback = None
    for _ in range(TRIES):
        draft = _answer(family, garment, asked, earlier, rng)
        if draft is not None and family.has(draft):
            return draft
        fallback = fallback or draft
    return fallback


def _answer(family: Family, garment: Garment, asked: Requests, earlier: Requests, rng: random.Random) -> Garment | None:
    """Draw a candidate for the retrieved image: it meets the request, loses earlier ones, and drifts.

    In long sessions a change that does not fit is left out; in the demo's, one makes the candidate None.
    """
    plain = {**garment, **asked}
    after = dict(plain)

    def fits() -> bool:
        return problem(after) is None and needs_accent(after) == needs_accent(plain)

    def change(name: str, value: str) -> None:
        before, after[name] = after[name], value
        if family.kind.long and not (fits() and problem({**after, **earlier, **asked}) is None):
            after[name] = before

    if len(asked) == 2 and "accent" not in asked and rng.random() < MISS:
        missed = rng.choice(list(asked))
        change(missed, garment[missed])
    for name, value in earlier.items():
        if name in asked:
            continue
        if after[name] == value and name in family.values and rng.random() < LOSS:
            change(name, rng.choice([v for v in family.values[name] if v != value]))
    quiet = [f for f in family.values if f not in earlier and f not in asked]
    count = rng.choices(list(DRIFT), list(DRIFT.values()))[0]
    for name in rng.sample(quiet, min(count, len(quiet))):
        change(name, rng.choice([v for v in family.values[name] if v != garment[name]]))
    return after if fits() and family.free(after) else None


def rivals(story: Story, family: Family) -> Iterator[Garment]:
    """Yield near neighbors of a session's target that shortcuts retrieve instead, the most similar first."""
    first, last, target = story.garments[0], story.garments[-2], story.garments[-1]
    yield {**last, **story.requests[-1]}  # the last turn alone
    yield {**first, **story.wanted}  # the first image with all captions
    for name in story.lost:  # one early request still lost
        yield {**target, name: last[name]}
    for name in family.values:
        if name in story.wanted:
            yield {**target, name: first[name]}
    for name in family.values:
        if name not in story.wanted and first[name] != target[name]:
            yield {**target, name: first[name]}
    for name, values in family.values.items():
        for value in values:
            yield {**target, name: value}


def fill_family(
    category: str,
    sessions: int,
    images: int,
    rng: random.Random,
    kind: Kind = DEMO,
    taken: Set[tuple[str, ...]] = frozenset(),
) -> tuple[Family, list[Story]]:
    """Return a family and its sessions, with rivals up to ``images`` garments (more if the sessions need them).

    ``taken``: garments that the family must not have.
    """
    family = make_family(category, rng, kind, taken)
    write = _long_story if kind.long else write_story
    for _ in range(images // 5):
        family.add(family.draw(rng))
    stories: list[Story] = []
    seen: set[tuple] = set()
    while len(stories) < sessions:
        turns = rng.choices(list(kind.lengths), list(kind.lengths.values()))[0]
        forgetful = rng.random() < FORGETFUL
        story = None
        while story is None or (forgetful and not story.lost):
            story = write(family, turns, rng)
        mark = tuple(tuple(g.values()) for g in story.garments)
        if mark in seen:
            continue
        seen.add(mark)
        stories.append(story)
        for garment in story.garments:
            family.add(garment)
    queues = [rivals(s, family) for s in stories]
    while queues and len(family.garments) < images:
        for queue in list(queues):
            rival = next((g for g in queue if problem(g) is None and not family.has(g) and family.free(g)), None)
            if rival is None:
                queues.remove(queue)
            elif len(family.garments) < images:
                family.add(rival)
    return family, stories
