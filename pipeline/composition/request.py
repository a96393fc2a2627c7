"""What ``[composer]`` of a run spec asks for: which composer, its options, how it is fitted, or its shipped weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from manifests.errors import Problems, nearest
from manifests.identity import digest
from manifests.options import parse_options
from manifests.schema import Component, RunSpec, Session
from pipeline.composition.composers import composers
from pipeline.composition.composers.base import Composer
from pipeline.composition.fit import FitOptions

DEFAULT = Component(name="fusion")  # a dual encoder needs no training to answer a query


@dataclass(frozen=True)
class ComposerRequest:
    """A checked ``[composer]`` table. ``weights``: a folder with a fitted composer, instead of fitting one."""

    kind: type[Composer]
    name: str
    options: BaseModel
    fit: FitOptions
    weights: Path | None

    @property
    def needs_fitting(self) -> bool:
        return self.kind.trainable and self.weights is None

    def key(self, backbone_fingerprint: str, sessions: tuple[Session, ...]) -> str:
        """12 hex digits for everything that decides the fitted weights: options, triplets, backbone."""
        seen = sorted(
            {(t.reference, t.text, target) for s in sessions for t, target in zip(s.turns, s.targets, strict=True)}
        )
        about = [self.name, self.kind.version, self.options.model_dump(), self.fit.model_dump()]
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
        options = parse_options(kind.Options, values, gathered.file, "composer", gathered)
        if options is not None and fit is not None:
            return ComposerRequest(kind, component.name, options, fit, Path(weights) if weights else None)
    if problems is None:
        gathered.raise_if_any()
    return None
