"""The questions of a study: sessions drawn at random, with what each model retrieves at their end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from manifests.errors import FashionNTMError
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import Trained

MOST_MODELS = 4


class StudyError(FashionNTMError, ValueError):
    """A study that cannot be asked, or an answer that does not fit it."""


@dataclass(frozen=True)
class Question:
    """``options``: model labels that retrieved the same images, and the images, best first. Two options or more."""

    number: int
    session: str
    options: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

    def shuffled(self, seed: int, participant: str) -> list[int]:
        """Places of the options in the order that this participant sees: the same each time it is asked."""
        order = list(range(len(self.options)))
        random.Random(f"{seed} {participant} {self.number}").shuffle(order)
        return order


def draw_questions(
    bed: TestBed, models: Sequence[Trained], count: int, k: int, seed: int
) -> tuple[list[Question], int]:
    """``count`` questions on sessions where not all models retrieve the same ``k`` images, in a random order; and
    on how many of the test sessions the models differ.

    Raises StudyError for one model, too many of them, or no session where they differ.
    """
    if not 2 <= len(models) <= MOST_MODELS:
        raise StudyError(f"a study compares 2 to {MOST_MODELS} models, not {len(models)}: name them with --model")
    tops = {m.label: bed.top(bed.finals(m), k) for m in models}
    found = []
    for number in range(len(bed.sessions)):
        groups: dict[tuple[str, ...], list[str]] = {}
        for label, top in tops.items():
            images = tuple(bed.image(number, row) for row in top[number] if row >= 0)
            groups.setdefault(images, []).append(label)
        if len(groups) > 1:
            found.append((number, tuple((tuple(labels), images) for images, labels in groups.items())))
    if not found:
        raise StudyError(f"the models retrieve the same top {k} for all sessions: there is nothing to choose between")
    drawn = random.Random(f"study {seed}").sample(found, min(count, len(found)))
    questions = [Question(n, bed.sessions[place].id, options) for n, (place, options) in enumerate(drawn)]
    return questions, len(found)
