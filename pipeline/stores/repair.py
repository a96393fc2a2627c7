"""Repair of a spec's stores: remove damaged parts and recompute them by ordinary extraction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import Manifest, Store, StoreError
from cache.repair import Repaired, check_identity, repair
from manifests.commandline import command_line, folder_options
from manifests.identity import digest
from manifests.schema import Dataset, RunSpec
from pipeline.composition.checkpoint import fitted
from pipeline.composition.ready import composer_folder
from pipeline.composition.request import composer_request
from pipeline.core.workspace import Workspace
from pipeline.jobs.stage1 import Fitted, StageOne, extract_spec, fit_composer_spec
from pipeline.stores.collect import specs_using
from pipeline.stores.wanted import ExpectedStore, StoreRequest, request_of


@dataclass(frozen=True)
class SpecRepair:
    """Result of a repair: repaired stores, the following extraction and the refitted composer, if they were needed."""

    stores: tuple[Repaired, ...]
    filled: StageOne | None
    refitted: Fitted | None = None

    @property
    def whole(self) -> bool:
        return not any(done.left for done in self.stores)

    def as_dict(self) -> dict[str, Any]:
        filled, refitted = (part.as_dict() if part else None for part in (self.filled, self.refitted))
        later = {"filled": filled, "refitted": refitted, "whole": self.whole}
        return {"stores": [done.as_dict() for done in self.stores], **later}

    def text(self) -> str:
        parts = [*self.stores, self.refitted, self.filled]
        return "\n".join(part.text() for part in parts if part)


def repair_spec(
    spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str = "auto", **options: Any
) -> SpecRepair:
    """Repair every store of ``spec``, refit a damaged composer, and extract (and compose) the missing rows.

    ``options`` are passed to ``extraction.run.extract``. Stores that do not exist yet are created by the extraction.
    """
    request = request_of(spec, dataset, workspace, device)
    done = _repair(request.backbone, dataset)
    refitted = None
    if _composer_damaged(request):
        if any(d.actions for d in done):
            extract_spec(spec, dataset, workspace, device, **options)
        refitted = fit_composer_spec(spec, dataset, workspace)
    if (refitted or any(d.actions for d in done)) and request.composed is not None:
        request = request_of(spec, dataset, workspace, device)  # the composer's folder depends on a readable backbone
    if request.composed is not None:
        done += _repair(request.composed, dataset)
    needed = any(d.actions for d in done)
    filled = extract_spec(spec, dataset, workspace, device, **options) if needed else None
    return SpecRepair(tuple(done), filled, refitted)


def _composer_damaged(request: StoreRequest) -> bool:
    """Return whether the composer fitted for the request's spec can no longer be loaded."""
    asked = composer_request(request.spec)
    if request.composed is None or not asked.kind.trainable or asked.weights is not None:
        return False
    try:
        backbone = Store.open(request.backbone.path)
    except StoreError:
        return False
    folder = composer_folder(asked, request.spec, request.dataset, backbone)
    return any(folder.glob("composer.*")) and not fitted(folder, asked.folds)


def _repair(wanted: ExpectedStore, dataset: Dataset) -> list[Repaired]:
    if not wanted.path.is_dir():
        return []
    identity = Manifest(dataset.name, wanted.extractor, digest(wanted.fields), wanted.fields, {})
    check_identity(wanted.path, identity)
    return [repair(wanted.path, identity)]


def filling_command(workspace: Workspace, path: Path, data: Path) -> str:
    """Return the command that extracts the missing rows of the store at ``path``, from the workspace's records."""
    spec, options = next(iter(specs_using(workspace, path).values()), None), folder_options(data, workspace.out)
    note = "with the options of the spec's extraction" if spec else "SPEC: the one that this store was made for"
    return f"{command_line('extract', spec or 'SPEC', *options)}  ({note})"
