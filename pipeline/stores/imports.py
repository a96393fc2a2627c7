"""Import of a user's feature arrays into a store for stage 2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.errors import ManifestError, Problem
from manifests.schema import Dataset, RunSpec
from pipeline.core.workspace import Workspace
from pipeline.extraction.arrays import Fit, fit, open_arrays
from pipeline.jobs.stage1 import StageOne, extract_spec


@dataclass(frozen=True)
class Imported:
    """Result of an import, and its match with the dataset."""

    fit: Fit
    stage: StageOne

    def as_dict(self) -> dict[str, Any]:
        return {"fit": vars(self.fit), **self.stage.as_dict()}

    def text(self) -> str:
        left_out = [f"note   {line}" for line in self.fit.lines()]
        return "\n".join([*left_out, self.stage.text()])


def import_features(spec: RunSpec, dataset: Dataset, workspace: Workspace, partial: bool = False) -> Imported:
    """Check the arrays of ``spec`` (with extractor "imported") against its dataset, and write its store.

    Raises ManifestError naming every problem: dtypes, shapes, NaN, repeated names; and, unless ``partial``, rows that
    the arrays lack or the dataset does not use. Contradictory rows are always an error.
    """
    options = spec.extractor.options
    found = fit(open_arrays(Path(options["folder"])), dataset, options.get("concatenated", True))
    wrong = found.conflicts if partial else found.lines()
    if wrong:
        fix = "fix the arrays" + ("" if partial else ", or give --partial to leave out what lacks features")
        raise ManifestError([Problem(options["folder"], "", line, fix) for line in wrong])
    return Imported(found, extract_spec(spec, dataset, workspace, "cpu"))
