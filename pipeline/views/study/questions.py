"""Questions of a study: sessions drawn at random, with the final results of each model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from manifests.errors import FashionNTMError
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import Trained

MOST_MODELS = 4


class StudyError(FashionNTMError, ValueError):
    """A study without valid questions, or an answer that does not match it."""


@dataclass(frozen=True)
class Question:
    """``options``: two or more pairs of model labels with equal results, and their images, best first."""

    number: int
    session: str
    options: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

    def shuffled(self, seed: int, participant: str) -> list[int]:
        """Return the option indices in this participant's order, which is deterministic."""
        order = list(range(len(self.options)))
        random.Random(f"{seed} {participant} {self.number}").shuffle(order)
        return order


def draw_questions(
    bed: TestBed, models: Sequence[Trained], count: int, k: int, seed: int
) -> tuple[list[Question], int]:
    """Draw ``count`` questions in random order from sessions where the models' top ``k`` images differ; also return
    the number of such test sessions.

    Raises StudyError for a single model, too many models, or no session where they differ.
    """
    if not 2 <= len(models) <= MOST_MODELS:
        raise StudyError(f"a study compares 2 to {MOST_MODELS} models, not {len(models)}: name them with --model")
    tops = {m.label: bed.top(bed.finals(m), k) for m in models}
    found = []
    for number in range(len(bed.sessions)):
        groups: dict[tuple[str, ...], list[str]] = {}
        for label, top in tops.items():
            groups.setdefault(bed.images(number, top[number]), []).append(label)
        if len(groups) > 1:
            found.append((number, tuple((tuple(labels), images) for images, labels in groups.items())))
    if not found:
        raise StudyError(f"the models retrieve the same top {k} for all sessions: there is nothing to choose between")
    drawn = random.Random(f"study {seed}").sample(found, min(count, len(found)))
    questions = [Question(n, bed.sessions[place].id, options) for n, (place, options) in enumerate(drawn)]
    return questions, len(found)
