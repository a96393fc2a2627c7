"""Run summaries as tables read them, and the footnotes on the evaluation protocol."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manifests.errors import FashionNTMError
from manifests.schema import OVERALL
from pipeline.evaluation.metrics import chance

SHORT = 12  # displayed digits of a fingerprint or run id
_NAMED = 5  # skipped sessions named in a footnote; the run's summary has all
SPREAD = "Mean ± standard deviation over seeds, in percent; a value without ± is of one run."


class TableError(FashionNTMError, ValueError):
    """Runs cannot share a cell, or a summary lacks fields that a table must state."""


class GalleryFacts(BaseModel):
    images: int
    dropped: tuple[str, ...] = ()


class RunSummary(BaseModel):
    """Keys of ``Evaluation.summary`` that tables read; further keys are allowed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run: str
    model: str
    seed: int | None  # None: deterministic method
    store: str
    dataset: str
    extractor: str
    gallery: Literal["image", "caption", "imported"]
    contaminated_on: tuple[str, ...] = ()
    metrics: dict[str, dict[str, dict[str, float]]]
    averaging: Literal["categories", "sessions"]
    ties: str
    references: str
    sessions: int
    skipped: dict[str, str] = Field(default_factory=dict)
    galleries: dict[str, GalleryFacts]
    results: str = ""  # its results.h5 with the ranks of all sessions

    def value(self, subset: str, category: str, metric: str) -> float | None:
        """Return the metric in percent; None if the run has no session."""
        return self.metrics.get(subset, {}).get(category, {}).get(metric)

    def chance(self, subset: str, category: str, metric: str) -> float | None:
        """Return the expected metric of a random order of the galleries, in percent; None for mAP or without a session."""
        if metric.startswith("mAP"):
            return None
        found = self.metrics.get(subset, {})
        names = [name for name in found if name in self.galleries and category in (name, OVERALL)]
        used = {name: n for name in names if name != OVERALL and (n := int(found[name].get("n", 0)))}
        if not used:
            return None
        values = [chance(self.galleries[name].images, metric) for name in used]
        return float(np.average(values, weights=list(used.values()) if self.averaging == "sessions" else None))

    def count(self, subset: str) -> int:
        return int(self.metrics.get(subset, {}).get("overall", {}).get("n", 0))


def read_runs(model: str, summaries: Iterable[Mapping[str, Any]]) -> list[RunSummary]:
    """Return the summaries of one row's runs, ordered by seed.

    Raises TableError for a missing key, two runs of one seed, or runs of different stores, which cannot be averaged.
    """
    found = [_read(model, summary) for summary in summaries]
    runs = sorted(found, key=lambda run: -1 if run.seed is None else run.seed)
    for one, other in itertools.pairwise(runs):
        if one.seed == other.seed:
            raise TableError(f"{model}: runs {one.run} and {other.run} are both of seed {one.seed}: show one of them")
    stores = {run.store: run.run for run in runs}
    if len(stores) > 1:
        shown = ", ".join(f"{run} ({store[:SHORT]})" for store, run in stores.items())
        raise TableError(f"{model}: runs of different stores ({shown}) cannot share a cell: choose one spec's runs")
    return runs


def _read(model: str, summary: Mapping[str, Any]) -> RunSummary:
    try:
        return RunSummary.model_validate(summary)
    except ValidationError as error:
        keys = ", ".join(sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()}))
        name = f"run {summary['run']}" if "run" in summary else "a run"
        raise TableError(f"{model}: the summary of {name} has no usable {keys}: evaluate the run again") from error


def protocol_notes(runs: Sequence[RunSummary]) -> list[str]:
    """Return the sentences on the protocol of ``runs`` that a reader must know; none without runs."""
    if not runs:
        return []
    rules = {"categories": "is the mean of the categories", "sessions": "counts all sessions together"}
    averaging = [f"Overall {rules[name]}." for name in sorted({run.averaging for run in runs})]
    return [*_gallery_notes(runs), *averaging, *_extractors(runs), SPREAD, *_skipped(runs)]


def _gallery_notes(runs: Sequence[RunSummary]) -> list[str]:
    kinds = {
        "image": "Image gallery.",
        "caption": "Caption gallery: captions stand in for the images, another task than the paper's.",
        "imported": "Imported features: their source is not known here.",
    }
    notes = [kinds[kind] for kind in sorted({run.gallery for run in runs})]
    rules = sorted({(run.references, run.ties) for run in runs})
    notes += [f"Cosine ranking; reference images {references}, ties {ties}." for references, ties in rules]
    for sizes in dict.fromkeys(tuple((n, g.images, len(g.dropped)) for n, g in run.galleries.items()) for run in runs):
        shown = ", ".join(f"{name} {images:,}" for name, images, _ in sizes)
        dropped = sum(n for _, _, n in sizes)
        left_out = f"; {dropped:,} without a feature left out" if dropped else ""
        notes.append(f"Gallery images: {shown}{left_out}.")
    return notes


def _extractors(runs: Sequence[RunSummary]) -> list[str]:
    notes = []
    for name, store in dict.fromkeys((run.extractor, run.store) for run in runs):
        run = next(r for r in runs if (r.extractor, r.store) == (name, store))
        known = f"not marked as contaminated on {run.dataset}"
        if run.dataset in run.contaminated_on:
            known = f"CONTAMINATED: it was trained on pairs that the test sessions of {run.dataset} are made of"
        elif run.contaminated_on:
            known = f"marked as contaminated on {', '.join(run.contaminated_on)}, not on {run.dataset}"
        notes.append(f"Extractor {name}, store {store[:SHORT]}; {known}.")
    if len(notes) > 1:
        notes.append("The rows come from different stores: they do not compare memory models alone.")
    return notes


def _skipped(runs: Sequence[RunSummary]) -> list[str]:
    notes = []
    for skipped, total in dict.fromkeys((tuple(run.skipped), run.sessions + len(run.skipped)) for run in runs):
        if skipped:
            named = ", ".join(skipped[:_NAMED]) + (", ..." if len(skipped) > _NAMED else "")
            why = "the summaries of the runs say why"
            notes.append(f"Sessions skipped: {len(skipped):,} of {total:,} ({named}); {why}.")
    return notes
