"""Results of a study: preference rates with intervals, sign tests for each pair of models, and Figure 7."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from manifests.errors import IncompleteError
from pipeline.evaluation.significance import holm
from pipeline.views.study.store import StudyFile


@dataclass(frozen=True)
class Rate:
    """Share of answers with a preference that chose a model's results. ``low``, ``high``: Wilson interval, 95%."""

    model: str
    title: str
    chosen: int
    of: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class SignTest:
    """Counts of answers (or sessions, by majority of the participants) for only one, and for only the other model.

    ``p``: exact two-sided binomial; ``holm``: ``p`` corrected for the number of pairs.
    """

    one: str
    other: str
    unit: str
    for_one: int
    for_other: int
    p: float
    holm: float


@dataclass(frozen=True)
class StudyResults:
    spec: str
    k: int
    questions: int
    answers: int
    no_preference: int
    shared: int  # answers for an option shared by several models
    rates: tuple[Rate, ...]
    tests: tuple[SignTest, ...]
    participants: dict[str, dict[str, int]]  # name -> model -> times chosen (Figure 7)
    progress: dict[str, int]  # name -> questions answered
    models: tuple[dict[str, Any], ...]  # label, title, run id and SHA-256 of the weights of each model compared
    made_with: dict[str, Any]  # digests of the features, galleries and test sessions; {} in an older file

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        unit = "result" if self.k == 1 else f"{self.k} results"
        head = f"study of {self.spec}: top {self.k}, {self.questions} questions, {len(self.progress)} participants"
        lines = [f"{head}, {self.answers} answers ({self.no_preference} without a preference)", ""]
        width = max(len(rate.title) for rate in self.rates)
        for rate in self.rates:
            bar = "█" * round(30 * rate.rate)
            share = f"{100 * rate.rate:5.1f}% [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
            lines.append(f"{rate.title:{width}}  {share}  {rate.chosen}/{rate.of}  {bar}")
        lines += ["", f"Preferred top {unit}, of the answers with a preference; Wilson 95% intervals over answers."]
        if self.shared:
            lines += [f"{self.shared} answers chose what several models retrieved alike: they count for each of them."]
        lines += ["", "Sign tests (exact, two-sided; Holm-corrected over the pairs):"]
        for test in self.tests:
            text = f"  {test.one} against {test.other}, by {test.unit}: {test.for_one} to {test.for_other},"
            lines.append(f"{text} p = {test.p:.3g}, corrected {test.holm:.3g}")
        lines += ["", "By participant:"]
        for name, counts in self.participants.items():
            shown = ", ".join(f"{model} {count}" for model, count in counts.items())
            lines.append(f"  {name}: {shown} ({self.progress[name]} of {self.questions} answered)")
        lines += ["", "Compared:"]
        for model in self.models:
            known = f"weights {model['weights'][:12]}" if model.get("weights") else "weights not recorded"
            lines.append(f"  {model['label']}: run {model['run']}, {known}")
        how = "Answers of one participant, and on one session, are not independent: read the tests by session first."
        return "\n".join([*lines, "", how])


def study_results(study: StudyFile) -> StudyResults:
    """Compute the results of a study. Raises IncompleteError without answers."""
    answers, options = study.answers(), {q.number: q.options for q in study.questions}
    if not answers:
        raise IncompleteError(f"{study.path}: no question is answered yet: open the study's page and answer some")
    titles = {model["label"]: model["title"] for model in study.about["models"]}
    chosen: Counter[str] = Counter()
    people: dict[str, dict[str, int]] = {}
    votes: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    shared = 0
    for participant, question, option in answers:
        mine = people.setdefault(participant, dict.fromkeys(titles, 0))
        if option is None:
            continue
        labels = options[question][option][0]
        shared += len(labels) > 1
        votes[question].append(labels)
        for label in labels:
            chosen[label] += 1
            mine[label] += 1
    decided = sum(map(len, votes.values()))
    rates = []
    for label, title in titles.items():
        interval = binomtest(chosen[label], decided).proportion_ci(method="wilson") if decided else None
        low, high = (float(interval.low), float(interval.high)) if interval else (0.0, 1.0)
        rates.append(Rate(label, title, chosen[label], decided, chosen[label] / max(1, decided), low, high))
    about, progress = study.about, dict(Counter(participant for participant, *_ in answers))
    counts = (len(study.questions), len(answers), len(answers) - decided, shared)
    tests, compared = tuple(_tests(list(titles), votes)), (tuple(about["models"]), about.get("made_with", {}))
    return StudyResults(about["spec"], about["k"], *counts, tuple(rates), tests, people, progress, *compared)


def _tests(labels: list[str], votes: dict[int, list[tuple[str, ...]]]) -> list[SignTest]:
    found: list[SignTest] = []
    for unit in ("session", "answer"):
        rows = []
        for one, other in itertools.combinations(labels, 2):
            margins = [[(one in v) - (other in v) for v in mine] for mine in votes.values()]
            signs = [sum(mine) for mine in margins] if unit == "session" else [s for mine in margins for s in mine]
            ahead, behind = sum(s > 0 for s in signs), sum(s < 0 for s in signs)
            p = float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
            rows.append((one, other, ahead, behind, p))
        corrected = holm([row[-1] for row in rows])
        found += [SignTest(a, b, unit, x, y, p, h) for (a, b, x, y, p), h in zip(rows, corrected, strict=True)]
    return found


def write_chart(path: Path, results: StudyResults) -> None:
    """Write bars by participant as PNG, PDF or SVG. Raises IncompleteError without matplotlib, for another suffix."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise IncompleteError("the chart needs matplotlib: python -m pip install 'fashion-ntm[plots]'") from None
    people, models = list(results.participants), [rate.model for rate in results.rates]
    figure = Figure(figsize=(max(4.0, 1.1 * len(people) + 2.2), 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(models)
    for n, rate in enumerate(results.rates):
        places = [p + (n - (len(models) - 1) / 2) * width for p in range(len(people))]
        counts = [results.participants[name][rate.model] for name in people]
        color = ("#0b6266", "#d9822b", "#5a4fa2", "#8c939c")[n]
        bars = axes.bar(places, counts, width * 0.94, label=rate.title, color=color)
        axes.bar_label(bars, fontsize=7, padding=1)
    axes.set_xticks(range(len(people)), people)
    axes.set_ylabel("preferred retrievals")
    axes.locator_params(axis="y", integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(models), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=200)
    except ValueError as error:
        raise IncompleteError(f"{path}: {error}: use .png, .pdf or .svg") from None
