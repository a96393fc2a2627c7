"""Ablation specs: a numbered grid of model options x training options x seeds over the features of one run spec."""

from __future__ import annotations

import itertools
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from manifests.errors import ManifestError, Problem, Problems, nearest
from manifests.load import read_toml, shipped, spec_path
from manifests.options import parse_file
from manifests.schema import Component, Frozen, RunSpec
from manifests.views import WHOLE, View

# With n seeds the exact paired test cannot give a two-sided p below 2 / 2^n: 0.0625 for 5 and 0.031 for 6 seeds.
SEEDS = (0, 1, 2, 3, 4, 5)


class Grid(Frozen):
    """Cartesian product of models and of the values of each list option. ``[[1, 2]]`` is one value, the list [1, 2]."""

    models: tuple[str, ...] = Field(min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    optional: bool = False  # skipped if no memory model of this name exists


class AblationSpec(Frozen):
    """Spec of the ``ablate`` command. Options of a point override those of the run spec for its model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = ""
    run: str  # run spec: dataset, extractor, composer, shared training, validation
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(SEEDS, min_length=1)
    grid: tuple[Grid, ...]
    views: tuple[View, ...] = (WHOLE,)  # each finished run is evaluated in every view
    windows: tuple[Annotated[int, Field(ge=1)], ...] = ()  # see ``RunSpec.windows``
    # Composers by label: options that replace those of the run spec's [composer]; the grid is run on each. Empty: its own.
    composers: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], dict[str, Any]] = Field(
        default_factory=dict
    )
    # Datasets by label: options that replace those of the run spec's [dataset]; the grid is run on each. Empty: its own.
    datasets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], dict[str, Any]] = Field(
        default_factory=dict
    )
    dialogs: bool = False  # see ``RunSpec.dialogs``
    timing: bool = False  # measure the inference time of every point (paper Figure 8)

    def points(self, known: Sequence[str] | None = None) -> tuple[Point, ...]:
        """Return the grid, numbered from 1. ``known``: names of the memory models; other optional ones are skipped."""
        made: list[Point] = []
        number = 0
        for grid in self.grid:
            axes = [
                (where, key, _values(value))
                for where in ("options", "training")
                for key, value in getattr(grid, where).items()
            ]
            for model in grid.models:
                for chosen in itertools.product(*(values for _, _, values in axes)):
                    number += 1  # an optional model that is absent keeps its number
                    if grid.optional and known is not None and model not in known:
                        continue
                    picked: dict[str, dict[str, Any]] = {"options": {}, "training": {}}
                    for (where, key, _), value in zip(axes, chosen, strict=True):
                        picked[where][key] = value
                    made.append(Point(number, model, **picked))
        return tuple(made)

    def variants(self, spec: RunSpec) -> dict[str, RunSpec]:
        """Return label -> run spec with that dataset and composer, named ``<spec>-<label>``; {"": spec} without any."""
        made = {"": spec}
        for part, changes in (("dataset", self.datasets), ("composer", self.composers)):
            if changes:
                made = {
                    f"{before}-{label}".lstrip("-"): _with_part(one, part, label, options)
                    for before, one in made.items()
                    for label, options in changes.items()
                }
        return made

    def check(self, problems: Problems) -> None:
        """Report an empty grid, and repeated seeds or points."""
        if not self.grid:
            problems.add("key grid", "empty", "an ablation needs one [[grid]] at least")
        for seed, count in Counter(self.seeds).items():
            if count > 1:
                problems.add("key seeds", f"{seed} appears {count} times", "each may appear once")
        first: dict[str, int] = {}
        for point in self.points():
            other = first.setdefault(point.label, point.number)
            if other != point.number:
                problems.add("key grid", f"points {other} and {point.number} are both {point.label}", "remove one")


@dataclass(frozen=True)
class Point:
    """Configuration of the grid; its options override the run spec's."""

    number: int
    model: str
    options: Mapping[str, Any]
    training: Mapping[str, Any]

    @property
    def words(self) -> tuple[str, ...]:
        options = (f"{key}={value}" for key, value in self.options.items())
        return (*options, *(f"training.{key}={value}" for key, value in self.training.items()))

    @property
    def label(self) -> str:
        return " ".join([self.model, *self.words])


def _with_part(spec: RunSpec, part: str, label: str, changes: Mapping[str, Any]) -> RunSpec:
    """Return ``spec`` with options of its dataset or composer changed; its command line repeats them, to be pasted."""
    name = f"{spec.name}-{label}"
    words = [f"--set name={name}"]
    for key, value in changes.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for inner, v in parts:
            shown = v if isinstance(v, str) else json.dumps(v)
            words.append(f"--set {shlex.quote(f'{part}.{key}.{inner}={shown}' if inner else f'{part}.{key}={shown}')}")
    old = getattr(spec, part)
    made = Component(**{**(old.model_dump() if old else {}), **changes})
    return spec.model_copy(update={"name": name, part: made, "given": " ".join([spec.asked, *words])})


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def ablation_names() -> tuple[str, ...]:
    """Return the names of the ablations shipped with the project."""
    return tuple(shipped("ablations"))


def load_ablation_spec(name: str) -> AblationSpec:
    """Load an ablation spec by shipped name or path. Raise ManifestError with every problem of the file."""
    path = spec_path(name, "ablations")
    return parse_ablation_spec(read_toml(path), str(path))


def parse_ablation_spec(values: dict[str, Any], file: str) -> AblationSpec:
    """Parse the TOML values of ``file`` as an ablation spec. Raise ManifestError with every problem found."""
    return parse_file(AblationSpec, values, file)


def chosen_variants(variants: Mapping[str, RunSpec], labels: Sequence[str]) -> dict[str, RunSpec]:
    """Return the variants with these labels, all of them if ``labels`` is empty. Raise ManifestError for others."""
    wrong = [label for label in labels if label not in variants]
    if wrong:
        known = [label for label in variants if label]
        fix = nearest(wrong[0], known) if known else "leave --variant out"
        raise ManifestError([Problem("--variant", wrong[0], "the ablation has no variant of this label", fix)])
    return {label: spec for label, spec in variants.items() if not labels or label in labels}


def chosen_points(points: Sequence[Point], only: Sequence[int]) -> tuple[Point, ...]:
    """Return the points with these numbers, in grid order; all points if ``only`` is empty."""
    known = {point.number for point in points}
    wrong = [number for number in only if number not in known]
    if wrong:
        numbers = sorted(known)
        fix = nearest(str(wrong[0]), map(str, numbers)) if len(numbers) < 9 else f"1 to {numbers[-1]}"
        raise ManifestError([Problem("--only", str(wrong[0]), "the grid has no point of this number", fix)])
    return tuple(point for point in points if not only or point.number in only)
