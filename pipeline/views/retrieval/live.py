"""Load the extractor and the composer of a store's rows, for queries without cached features."""

from __future__ import annotations

from typing import Any

from cache import Store
from cache.layout import canonical
from manifests.errors import IncompleteError
from manifests.identity import changed_fields
from manifests.schema import Component, Dataset, RunSpec
from pipeline.composition.compose import composed_fields
from pipeline.composition.composers.base import Composer
from pipeline.composition.ready import ready_composer
from pipeline.composition.request import composer_request, is_joint
from pipeline.core.workspace import Workspace
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.fitting.job import fitted_spec
from pipeline.jobs.experiment import Experiment


class OtherModelError(IncompleteError):
    """The current model differs from the one that made the store's rows, so its queries do not fit the gallery."""


def store_extractor(experiment: Experiment) -> Extractor:
    """Load the extractor of the backbone rows, with its fitted weights if any, in the rows' precision.

    Raises OtherModelError if its semantic fields differ from the store's, naming them old -> new and the command to
    run; IncompleteError if it is not fitted yet; and the errors of ``load_extractor``.
    """
    about = spec, dataset, workspace = experiment.spec, experiment.dataset, experiment.workspace
    backbone, chosen = workspace.backbone(spec, dataset), fitted_spec(*about)
    if "compute_dtype" in backbone.fields:  # set by ``extract --precision``, not by a spec
        options = {**chosen.extractor.options, "dtype": backbone.fields["compute_dtype"]}
        chosen = chosen.model_copy(update={"extractor": Component(name=chosen.extractor.name, **options)})
    extractor = load_extractor(chosen, str(experiment.device))
    _same(backbone.fields, canonical(extractor.semantic()), f"extractor '{spec.extractor.name}'", backbone, spec)
    return extractor


def store_composer(spec: RunSpec, dataset: Dataset, workspace: Workspace) -> Composer | None:
    """Load the composer of the spec's query rows, in eval mode; None for a joint model, which needs none.

    For a cross-fitted store this is the head fitted on all train sessions. Raises OtherModelError if weights, options
    or backbone differ from the store's fields.
    """
    backbone, store, request = workspace.backbone(spec, dataset), workspace.store(spec, dataset), composer_request(spec)
    if is_joint(backbone):
        return None
    ready, command = ready_composer(request, spec, dataset, backbone, folds=False), "extract"
    if request.kind.trainable:
        command = "fit-composer"
    if ready is None:
        what = f"the fitted composer of spec '{spec.name}' is missing or damaged"
        raise IncompleteError(f"{what}: run `{spec.command('fit-composer')}`")
    stored = {k: v for k, v in store.fields["composer"].items() if k != "folds"}
    found = canonical(composed_fields(backbone, ready.composer, ready.weights))
    _same(store.fields | {"composer": stored}, found, f"composer '{request.name}'", store, spec, command)
    return ready.composer


def _same(
    stored: dict[str, Any], found: dict[str, Any], what: str, store: Store, spec: RunSpec, command: str = "extract"
) -> None:
    if changed := changed_fields(stored, found):
        since = f"changed since it made {store.path.name} ({'; '.join(changed)})"
        raise OtherModelError(f"{what} of spec '{spec.name}' {since}: run `{spec.command(command)}`")
