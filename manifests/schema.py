"""Data types of the project: images, turns, sessions, galleries, datasets and run specs."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from manifests.commandline import PROGRAM
from manifests.errors import Problems

Split = Literal["train", "test"]
References = Literal["kept", "removed"]  # whether a session's reference images stay in its gallery
Disjoint = Literal["pairs", "images"]  # what validation sessions do not share with the other train sessions
TurnTargets = Literal["next", "final"]  # target of a turn's text: the next turn's reference, or the session's target
CAPTION_JOIN = " and "  # joins the two annotators' captions of a FashionIQ turn
OVERALL = "overall"  # the average of all categories in results; reserved, so no category may have this name
NO_IMAGE = "no image"  # reference of a text-only turn; no image of a catalog has this id
TURN_JOIN = ". "  # ST + cat(all captions): joins the texts of the turns


class Frozen(BaseModel):
    """Base of immutable models that reject unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Image(Frozen):
    """A catalog image: its id, with a file below ``Dataset.images_root`` or a caption in place of it."""

    id: str = Field(min_length=1)
    file: str | None = None
    caption: str | None = None


class Turn(Frozen):
    """Turn n of a session: reference image I_n and feedback text U_n (one or more caption strings).

    A turn without ``reference`` is text-only: its query is that of an image whose embedding is zero.
    """

    reference: str = Field(NO_IMAGE, min_length=1)
    captions: tuple[str, ...] = Field(min_length=1)

    @field_validator("captions")
    @classmethod
    def _not_blank(cls, captions: tuple[str, ...]) -> tuple[str, ...]:
        if any(not c.strip() for c in captions):
            raise ValueError("empty caption: every feedback text needs at least one word")
        return captions

    @property
    def text(self) -> str:
        """Feedback text of the single-turn model: all captions in file order, joined into one sentence."""
        return CAPTION_JOIN.join(" ".join(c.split()) for c in self.captions)


class Session(Frozen):
    """One multi-turn transaction [(I_1, U_1), ..., (I_N, U_N)] and its final target (paper section 3)."""

    id: str = Field(min_length=1)
    category: str = Field(min_length=1)
    split: Split
    turns: tuple[Turn, ...] = Field(min_length=1)
    target: str = Field(min_length=1)
    turn_targets: TurnTargets = "next"
    also: tuple[str, ...] = ()  # further correct images of the last turn; metrics mAP@K count them

    @model_serializer(mode="wrap")
    def _without_the_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ``turn_targets`` and ``also`` at their defaults: identities of such sessions stay unchanged."""
        defaults = {"turn_targets": "next", "also": ()}
        return {k: v for k, v in write(self).items() if k not in defaults or getattr(self, k) != defaults[k]}

    def queries(self) -> Iterator[tuple[str, str, int]]:
        """Yield (reference image id, text, turn) of each query; turns from 1, and 0: all captions as one text (ST + cat)."""
        for number, turn in enumerate(self.turns, start=1):
            yield turn.reference, turn.text, number
        yield self.turns[0].reference, self.text, 0

    @property
    def correct(self) -> tuple[str, ...]:
        """All correct images: the target, then the others, without repeats."""
        return tuple(dict.fromkeys((self.target, *self.also)))

    @property
    def text(self) -> str:
        """All captions as one text; with the first reference image, the query of ST + cat(all captions)."""
        return TURN_JOIN.join(turn.text for turn in self.turns)

    @property
    def targets(self) -> tuple[str, ...]:
        """Target of each turn: the next turn's reference image; for the last turn, the session's target.

        With ``turn_targets`` "final", every turn has the session's target.
        """
        if self.turn_targets == "final":
            return (self.target,) * len(self.turns)
        return (*(turn.reference for turn in self.turns[1:]), self.target)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(reference, target) pair of each turn: the single-turn triplets without their text."""
        return tuple((reference, target) for reference, _, target in self.triplets)

    @property
    def triplets(self) -> tuple[tuple[str, str, str], ...]:
        """(reference, text, target) of each turn."""
        return tuple((turn.reference, turn.text, target) for turn, target in zip(self.turns, self.targets, strict=True))

    def last(self, turns: int) -> Session:
        """Return the session reduced to its last ``turns`` turns; earlier turns count as answered (paper Table 4)."""
        return self if turns >= len(self.turns) else self.model_copy(update={"turns": self.turns[-turns:]})

    def first(self, turns: int) -> Session:
        """Return the session reduced to its first ``turns`` turns, with the same final target."""
        return self if turns >= len(self.turns) else self.model_copy(update={"turns": self.turns[:turns]})


class Gallery(Frozen):
    """The candidate images of one retrieval."""

    category: str
    split: Split
    images: tuple[str, ...]


class Dataset(BaseModel):
    """A loaded dataset. ``attributes`` (image id -> words by field) is optional side information."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str
    images: dict[str, Image]
    sessions: tuple[Session, ...]
    galleries: tuple[Gallery, ...]
    images_root: Path | None = None
    averaging: Literal["categories", "sessions"] = "categories"  # "Overall": mean of categories, or micro
    attributes: dict[str, dict[str, tuple[str, ...]]] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()  # changes made while loading, e.g. a dropped one-turn session
    windows: tuple[int, ...] = ()  # see ``RunSpec.windows``
    prefixes: bool = False  # see ``RunSpec.prefixes``
    dialogs: bool = False  # see ``RunSpec.dialogs``
    protocol: str = ""  # clean split (``manifests.protocols``) whose sessions these are; "": all sessions

    def split(self, split: Split) -> tuple[Session, ...]:
        return tuple(s for s in self.sessions if s.split == split)

    def gallery(self, category: str, split: Split) -> Gallery:
        return self._galleries[category, split]

    @cached_property
    def _galleries(self) -> dict[tuple[str, str], Gallery]:
        return {(g.category, g.split): g for g in self.galleries}

    @cached_property
    def text_only(self) -> bool:
        """Whether a turn has no reference image."""
        return any(turn.reference == NO_IMAGE for session in self.sessions for turn in session.turns)

    @property
    def turn_targets(self) -> tuple[TurnTargets, ...]:
        """Kinds of turn target among the sessions, "next" before "final"."""
        return tuple(sorted({s.turn_targets for s in self.sessions}, reverse=True))

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.category for s in self.sessions))

    def turn_counts(self, split: Split) -> dict[int, int]:
        """Number of sessions by number of turns (paper Table 1)."""
        return dict(sorted(Counter(len(s.turns) for s in self.split(split)).items()))

    def gallery_images(self, split: Split) -> int:
        """Total images: the sum of the categories' gallery sizes (paper Table 1)."""
        return sum(len(g.images) for g in self.galleries if g.split == split)

    def queries(self) -> Iterator[tuple[str, str]]:
        """Yield each (reference image id, text) query of the single-turn model, ST + cat included, with repeats."""
        for session in self.sessions:
            yield from ((image, text) for image, text, _ in session.queries())
            for turns in self.windows if session.split == "test" else ():
                window = session.last(turns)
                yield window.turns[0].reference, window.text
            for turns in range(2, len(session.turns)) if self.prefixes and session.split == "test" else ():
                yield session.turns[0].reference, session.first(turns).text

    def whole_dialogs(self) -> Iterator[Session]:
        """Yield what is encoded as one chat with ``dialogs``: the test sessions, whole and in the windows, of two turns or
        more, with repeats."""
        for session in self.split("test") if self.dialogs else ():
            for turns in (len(session.turns), *self.windows):
                if len((window := session.last(turns)).turns) > 1:
                    yield window

    def check(self, problems: Problems) -> None:
        """Report problems across records: unknown images, duplicate ids, a gallery without its target."""
        if NO_IMAGE in self.images:
            problems.add(f"image {NO_IMAGE!r}", "this id is reserved for a turn without an image", "rename it")
        repeated = [i for i, n in Counter(s.id for s in self.sessions).items() if n > 1]
        for session_id in repeated:
            problems.add(f"session {session_id!r}", "this id appears more than once", "session ids must be unique")
        names = {"image": self.images, "session": (s.id for s in self.sessions), "category": self.categories}
        for kind, values in names.items():
            for name in values:
                if "\0" in name:
                    problems.add(f"{kind} {name!r}", "holds a zero byte, which result files cannot store", "rename it")
        if OVERALL in {*self.categories, *(g.category for g in self.galleries)}:
            fix = "rename it in the sessions and galleries"
            problems.add(f"category {OVERALL!r}", "this name is taken: it is the average of all categories", fix)
        members = {key: set(g.images) for key, g in self._galleries.items()}
        for session in self.sessions:
            place, turns = f"session {session.id!r}", len(session.turns)
            for number, image in enumerate((*(t.reference for t in session.turns), session.target), start=1):
                if image not in self.images and (image != NO_IMAGE or number > turns):
                    where = f"{place} turn {number}" if number <= turns else f"{place} target"
                    problems.add(where, f"image {image!r} is not in the catalog", "add it, or drop the session")
            if session.split != "test":
                continue
            candidates = members.get((session.category, "test"))
            named = f"the test gallery of {session.category!r}"
            if candidates is None:
                problems.add(place, f"category {session.category!r} has no test gallery")
            elif missing := [image for image in session.also if image not in candidates]:
                what = f"correct image {missing[0]!r} is not in {named}"
                problems.add(f"{place} key also", what, "add it, or leave it out of 'also'")
            elif session.target not in candidates:
                fix = "a gallery must hold the target of each of its sessions"
                problems.add(place, f"target {session.target!r} is not in {named}", fix)
        for gallery in self.galleries:
            place = f"gallery {gallery.category}/{gallery.split}"
            for image, n in Counter(gallery.images).items():
                if n > 1:
                    problems.add(place, f"image {image!r} is listed {n} times")
                elif image not in self.images:
                    problems.add(place, f"image {image!r} is not in the catalog")


class Component(BaseModel):
    """A named part with options of its own; the part's module checks the options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Training(Frozen):
    """Training options of a memory model. The defaults are the paper's (section 4.2), with every optional part off.

    A dump leaves out the parts that are off, so a new part does not change the identity of earlier runs.
    """

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(80, ge=2)
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    scale: float = Field(1.0, gt=0)  # inverse temperature of the cosine logits; the paper states none
    padding: Literal["repeat", "mask"] = "repeat"  # short sessions: repeat the last turn (paper), or mask
    clip_norm: float | None = Field(None, gt=0)
    early_stopping: int | None = Field(None, ge=1)  # patience in epochs on validation; needs [validation]
    # Optional parts; docs/training-parts.md describes each.
    loss: Component = Component(name="cross_entropy")  # a file of pipeline/training/losses, with its options
    negatives: Literal["batch", "static", "category"] = "batch"  # static: every cached train target
    same_target: Literal["negative", "ignore"] = "negative"  # for another session's target that is the same image
    hard_groups: int | None = Field(None, ge=2)  # groups sessions with similar targets in a batch
    uncertainty: float = Field(0.0, ge=0)  # width of the Gaussian augmentation of the targets, in batch deviations
    recombine: float = Field(0.0, ge=0, le=1)  # probability that a training session gets another history of train pairs
    drop_turns: float = Field(0.0, ge=0, lt=1)  # probability that an earlier turn is left out of a training session
    ema: float = Field(0.0, ge=0, lt=1)  # decay of the moving average of the weights, which is validated and kept
    matmul: Literal["highest", "high", "medium"] = (
        "highest"  # float32 matrix products: exact, TF32, or bfloat16 where supported
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _by_name(cls, loss: Any) -> Any:
        return {"name": loss} if isinstance(loss, str) else loss

    @model_serializer(mode="wrap")
    def _without_parts_that_are_off(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {k: v for k, v in write(self).items() if k not in PARTS or getattr(self, k) != fields[k].default}


PARTS = ("loss", "negatives", "same_target", "hard_groups", "uncertainty", "recombine", "drop_turns", "ema", "matmul")


class Validation(Frozen):
    """Validation part of the train sessions: it shares no (reference, target) pair, or no image, with the rest.

    A dump leaves ``disjoint`` out at its default, so that the identity of earlier runs does not change.
    """

    fraction: float = Field(0.0, ge=0, lt=0.5)
    seed: int = 0
    disjoint: Disjoint = "pairs"

    @model_serializer(mode="wrap")
    def _without_the_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in write(self).items() if k != "disjoint" or v != "pairs"}


class RunSpec(Frozen):
    """One job: a dataset, an extractor, an optional composer, and the memory models with their options."""

    name: str
    title: str = ""
    dataset: Component
    extractor: Component
    composer: Component | None = None
    training: Training = Training()
    validation: Validation = Validation()
    models: dict[str, dict[str, Any]] = Field(default_factory=dict)  # options; its [training] overrides the shared one
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    # Stage 1 also extracts the ST + cat query of the last 2, 3, ... turns of the test sessions (paper Table 4).
    windows: tuple[Annotated[int, Field(ge=1)], ...] = ()
    prefixes: bool = False  # the same of the first 2, 3, ... turns, for the curve of ST + cat over turns
    references: References = "kept"  # in the galleries of an evaluation; the paper keeps them
    # Stage 1 also encodes each test session, whole and in its windows, as one chat of all its images and texts: rows of
    # model st_history. The extractor must be a multimodal LLM.
    dialogs: bool = False
    given: str = Field("", exclude=True)  # name of the spec as typed on the command line, for hints

    @field_validator("name")
    @classmethod
    def _file_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError("a spec's name becomes a folder name: use at most 100 letters, digits, '.', '_' and '-'")
        return name

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = [seed for n, seed in enumerate(seeds) if seed in seeds[:n]]
        if twice:
            raise ValueError(f"seed {twice[0]} is listed twice: results would count one run as two")
        return seeds

    @property
    def asked(self) -> str:
        """The spec as an argument of the command line, so that a printed command can be pasted."""
        return self.given or self.name

    def command(self, name: str, *more: str) -> str:
        """Return command ``name`` on this spec with the options that it was loaded with, and ``more``, to be pasted."""
        return " ".join([PROGRAM, name, self.asked, *map(shlex.quote, more)])
