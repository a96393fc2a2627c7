"""Check whether a recorded run matches the present data of its spec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manifests.errors import FashionNTMError
from manifests.load import load_dataset
from manifests.schema import RunSpec
from pipeline.core.workspace import Workspace
from pipeline.jobs.identities import RunIdentities
from pipeline.training.runs import IDENTITY_VERSION


class Currency:
    """Cache of recorded specs, each loaded once, with datasets from ``data`` and stores from ``out``."""

    def __init__(self, data: Path, out: Path):
        self.data, self.workspace = data, Workspace(out)
        self._known: dict[str, RunIdentities | str] = {}

    def identities(self, record: Mapping[str, Any]) -> RunIdentities | str:
        """Return the run identities of the recorded spec on the present data, or the reason why there are none."""
        key = json.dumps(record.get("spec"), sort_keys=True)
        if key not in self._known:
            self._known[key] = self._load(record.get("spec"))
        return self._known[key]

    def _load(self, recorded: Any) -> RunIdentities | str:
        try:
            spec = RunSpec.model_validate(recorded)
            dataset = load_dataset(spec, self.data)
        except (FashionNTMError, ValueError):
            return f"not checked: its data is not in {self.data}"
        try:
            return RunIdentities(spec, dataset, self.workspace)
        except FashionNTMError:
            return "of other data"

    def of(self, record: Mapping[str, Any]) -> str:
        """Return "current", "of other data", "of an earlier version", or why the run was not checked."""
        if record.get("identity", {}).get("version") != IDENTITY_VERSION:
            return "its identity is of an earlier version: train it again to use it"
        found = self.identities(record)
        if isinstance(found, str):
            return found
        return "current" if found.run_of(record["identity"]) is not None else "of other data"
