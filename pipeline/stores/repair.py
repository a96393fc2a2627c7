"""Repair of a spec's stores: what is broken is taken out, and the ordinary extraction fills it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import Manifest
from cache.repair import Repaired, check_identity, repair
from manifests.identity import digest
from manifests.schema import Dataset, RunSpec
from pipeline.stage1 import extract_spec
from pipeline.stores.collect import specs_using
from pipeline.stores.wanted import Wanted, request_of
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class SpecRepair:
    """What was repaired, and the extraction after it (None when there was nothing to fill)."""

    stores: tuple[Repaired, ...]
    filled: Any  # pipeline.stage1.StageOne

    @property
    def whole(self) -> bool:
        return not any(done.left for done in self.stores)

    def as_dict(self) -> dict[str, Any]:
        return {
            "stores": [done.as_dict() for done in self.stores],
            "filled": self.filled.as_dict() if self.filled else None,
            "whole": self.whole,
        }

    def text(self) -> str:
        parts = [done.text() for done in self.stores]
        return "\n".join([*parts, self.filled.text()] if self.filled else parts)


def repair_spec(
    spec: RunSpec, dataset: Dataset, workspace: Workspace, device: str = "auto", **options: Any
) -> SpecRepair:
    """Repair every store of ``spec`` and extract (and compose) exactly what is missing then.

    ``options`` go to ``extraction.run.extract``. A store that does not exist yet is left to the extraction.
    """
    request = request_of(spec, dataset, workspace, device)
    done = _repair(request.backbone, dataset)
    if any(d.actions for d in done) and request.composed is not None:
        request = request_of(spec, dataset, workspace, device)  # its composer is found by a backbone that can be read
    if request.composed is not None:
        done += _repair(request.composed, dataset)
    needed = any(d.actions for d in done)
    return SpecRepair(tuple(done), extract_spec(spec, dataset, workspace, device, **options) if needed else None)


def _repair(wanted: Wanted, dataset: Dataset) -> list[Repaired]:
    if not wanted.path.is_dir():
        return []
    identity = _identity(wanted, dataset)
    check_identity(wanted.path, identity)
    return [repair(wanted.path, identity)]


def _identity(wanted: Wanted, dataset: Dataset) -> Manifest:
    return Manifest(dataset.name, wanted.extractor, digest(wanted.fields), wanted.fields, {})


def filling_command(workspace: Workspace, path: Path) -> str:
    """The command that extracts what is missing in the store at ``path``, as far as the workspace knows."""
    specs = specs_using(workspace, path)
    out = [] if workspace.out == Path("out") else ["--out", str(workspace.out)]
    if specs:
        return " ".join(["extract", specs[0], *out]) + "  (or the spec file of that name, with its options)"
    return " ".join(["extract SPEC", *out]) + "  (SPEC: the one that this store was made for)"
