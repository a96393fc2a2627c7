"""What ``[composer]`` of a run spec asks for: which composer, its options, how it is fitted, or its shipped weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from manifests.errors import Problems, nearest
from manifests.identity import digest
from manifests.options import parse_options
from manifests.schema import Component, Frozen, RunSpec, Session
from pipeline.composition.composers import composers
from pipeline.composition.composers.base import Composer
from pipeline.composition.fit import FitOptions

DEFAULT = Component(name="fusion")  # a dual encoder needs no training to answer a query


class CrossFitting(Frozen):
    """``folds`` = K: features of each train fold from a head fitted on the other K - 1; 0: one head for all rows."""

    folds: int = Field(0, ge=0)


@dataclass(frozen=True)
class ComposerRequest:
    """A checked ``[composer]`` table. ``weights``: a folder with a fitted composer, instead of fitting one."""

    kind: type[Composer]
    name: str
    options: BaseModel
    fit: FitOptions
    weights: Path | None
    folds: int = 0

    @property
    def needs_fitting(self) -> bool:
        return self.kind.trainable and self.weights is None

    def key(self, backbone_fingerprint: str, sessions: tuple[Session, ...]) -> str:
        """12 hex digits for everything that decides the fitted weights: options, triplets, backbone."""
        seen = sorted(
            {(t.reference, t.text, target) for s in sessions for t, target in zip(s.turns, s.targets, strict=True)}
        )
        about: list[object] = [self.name, self.kind.version, self.options.model_dump(), self.fit.model_dump()]
        about += [{"folds": self.folds}] if self.folds else []
        return digest([*about, backbone_fingerprint, seen])[:12]


def composer_request(spec: RunSpec, problems: Problems | None = None) -> ComposerRequest | None:
    """Parse ``spec.composer`` (weighted fusion when absent).

    With ``problems`` given they are added and None is returned; otherwise ManifestError is raised.
    """
    gathered = problems if problems is not None else Problems(spec.name)
    component = spec.composer or DEFAULT
    if component.name not in composers.names():
        gathered.add(
            "key composer.name", f"unknown composer {component.name!r}", nearest(component.name, composers.names())
        )
    else:
        kind = composers.get(component.name)
        values = component.options
        fit = parse_options(FitOptions, values.pop("fit", {}), gathered.file, "composer.fit", gathered)
        weights = values.pop("weights", None)
        crossed = {"folds": values.pop("folds", 0)}
        cross = parse_options(CrossFitting, crossed, gathered.file, "composer", gathered)
        options = parse_options(kind.Options, values, gathered.file, "composer", gathered)
        if cross is not None and cross.folds:
            _check_folds(cross.folds, kind, weights, gathered)
        if options is not None and fit is not None and cross is not None and not (cross.folds and gathered.found):
            return ComposerRequest(kind, component.name, options, fit, Path(weights) if weights else None, cross.folds)
    if problems is None:
        gathered.raise_if_any()
    return None


def _check_folds(folds: int, kind: type[Composer], weights: str | None, problems: Problems) -> None:
    place = "key composer.folds"
    if folds == 1:
        problems.add(place, "found 1", "cross-fitting needs at least two folds; 0 turns it off")
    if not kind.trainable:
        problems.add(place, f"composer '{kind.__module__.rsplit('.', 1)[-1]}' is not fitted", "leave folds out")
    if weights:
        problems.add(
            place, "fitted weights are given, so no head can be fitted without a fold", "leave one of them out"
        )
