"""The ``[composer]`` table of a run spec: composer, options, and fit options or given weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from cache import Store
from manifests.errors import Problems, nearest
from manifests.identity import digest, session_key
from manifests.options import parse_options
from manifests.schema import Component, Dataset, Frozen, RunSpec, Session
from pipeline.composition.checkpoint import weights_digest
from pipeline.composition.composers import composers
from pipeline.composition.composers.base import Composer
from pipeline.composition.fit import FitOptions, triplets

Sessions = tuple[Session, ...]
DEFAULT = Component(name="fusion")  # needs no training


class CrossFitting(Frozen):
    """Cross-fitting. ``folds`` = K: each train fold uses a head fitted on the other K - 1 folds; 0: a single head."""

    folds: int = Field(0, ge=0)


@dataclass(frozen=True)
class ComposerRequest:
    """Validated ``[composer]`` table. ``weights``: a folder with a fitted composer, instead of fitting one."""

    kind: type[Composer]
    name: str
    options: BaseModel
    fit: FitOptions
    weights: Path | None
    folds: int = 0

    @property
    def needs_fitting(self) -> bool:
        return self.kind.trainable and self.weights is None

    def key(self, backbone: Store, dataset: Dataset, fit: Sessions, validation: Sessions) -> str:
        """Return 12 hex digits that identify a fitted composer and its scores by content; no feature is read.

        The key covers options, backbone, triplets in order, the sessions of the folds, and the validation triplets with
        their train galleries. ``backbone`` is bound to ``dataset`` (``Store.bound_to``).
        """
        return digest(self.fields(backbone, dataset, fit, validation))[:12]

    def fields(self, backbone: Store, dataset: Dataset, fit: Sessions, validation: Sessions) -> dict[str, Any]:
        """Return the identity of the composer as fields; composers without fitting have no triplet fields."""
        about: dict[str, Any] = {"name": self.name, "version": self.kind.version, "options": self.options.model_dump()}
        about["backbone"] = backbone.fingerprint
        if not self.kind.trainable:
            return about
        if self.weights is not None:
            return about | {"weights": weights_digest(self.weights)}
        about |= {"fit": self.fit.model_dump(), "triplets": triplets(backbone, fit).content}
        catalogue = backbone.catalogue()
        if self.folds:
            about["folds"] = [self.folds, digest([session_key(session, catalogue).hex() for session in fit])]
        if validation:
            of_train = [g for g in dataset.galleries if g.split == "train"]
            known = {g.category: sorted(catalogue[i].hex() for i in g.images if i in catalogue) for g in of_train}
            galleries = {category: digest(images) for category, images in known.items()}
            about["validation"] = [triplets(backbone, validation).content, galleries]
        return about


def is_joint(backbone: Store) -> bool:
    """Return whether the store is of a joint model, which computes f_qry itself and needs no composer.

    A catalog without sessions has no query rows, so targets count too.
    """
    return "query" in backbone.tables or "target" in backbone.tables


def row_dims(backbone: Store) -> tuple[int, int]:
    """Return the widths of image and text rows; without any text row, of one space, the images' for both."""
    image = backbone.tables["image"].dim
    return image, backbone.tables["text"].dim if "text" in backbone.tables else image


def composer_request(spec: RunSpec) -> ComposerRequest:
    """Parse ``spec.composer`` (weighted fusion if absent). Raises ManifestError with all its problems."""
    problems = Problems(spec.name)
    found = parse_composer(spec.composer or DEFAULT, problems)
    problems.raise_if_any()
    assert found is not None
    return found


def parse_composer(component: Component, problems: Problems) -> ComposerRequest | None:
    """Return the request of a ``[composer]`` table; add what is wrong with it to ``problems``."""
    name, values, place = component.name, component.options, "key composer.folds"
    if name not in composers.names():
        problems.add("key composer.name", f"unknown composer {name!r}", nearest(name, composers.names()))
        return None
    kind = composers.get(name)
    fit = parse_options(FitOptions, values.pop("fit", {}), problems.file, "composer.fit", problems)
    weights = values.pop("weights", None)
    cross = parse_options(CrossFitting, {"folds": values.pop("folds", 0)}, problems.file, "composer", problems)
    options = parse_options(kind.Options, values, problems.file, "composer", problems)
    if cross is not None and cross.folds == 1:
        problems.add(place, "found 1", "cross-fitting needs at least two folds; 0 turns it off")
    if cross is not None and cross.folds and not kind.trainable:
        problems.add(place, f"composer '{name}' is not fitted", "leave folds out")
    if cross is not None and cross.folds and weights:
        what = "fitted weights are given, so no head can be fitted without a fold"
        problems.add(place, what, "leave one of them out")
    if options is None or fit is None or cross is None:
        return None
    return ComposerRequest(kind, name, options, fit, Path(weights) if weights else None, cross.folds)
