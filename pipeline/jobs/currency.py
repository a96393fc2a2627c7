"""Check whether a recorded run matches the present data of its spec."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manifests.commandline import folder_options
from manifests.errors import FashionNTMError, IncompleteError
from manifests.load import load_dataset, recorded_spec, shipped
from pipeline.core.workspace import Workspace
from pipeline.jobs.identities import RunIdentities
from pipeline.training.runs import IDENTITY_VERSION

RUN_KEYS = ("title", "training", "models", "seeds", "references")  # of a spec: what its data does not depend on


class NotCheckedError(IncompleteError):
    """The data of a recorded spec is not available, so its runs cannot be checked."""


class Currency:
    """Loads the data of each spec that runs were recorded with once, from the datasets in ``data`` and the stores in ``out``."""

    def __init__(self, data: Path, out: Path):
        self.data, self.out, self.workspace = data, out, Workspace(out)
        self._known: dict[str, RunIdentities | IncompleteError] = {}

    def identities(self, record: Mapping[str, Any]) -> RunIdentities:
        """Return the identities of the recorded spec on the present data.

        Raises NotCheckedError if its data is not available, and IncompleteError if its features are missing or stale.
        """
        spec = record.get("spec")
        kept = {k: v for k, v in spec.items() if k not in RUN_KEYS} if isinstance(spec, dict) else spec
        key = json.dumps(kept, sort_keys=True)
        if key not in self._known:
            self._known[key] = self._load(spec)
        found = self._known[key]
        if isinstance(found, IncompleteError):
            raise found
        return found

    def _load(self, recorded: Any) -> RunIdentities | IncompleteError:
        try:
            spec = recorded_spec(recorded)
            word = spec.name if spec.name in shipped("runs") else f"{spec.name}.toml"
            spec = spec.model_copy(update={"given": shlex.join([word, *folder_options(self.data, self.workspace.out)])})
            dataset = load_dataset(spec, self.data)
        except (FashionNTMError, ValueError):
            return NotCheckedError(f"not checked: its data is not in {self.data}")
        try:
            return RunIdentities(spec, dataset, self.workspace)
        except IncompleteError as error:
            return error

    def of(self, record: Mapping[str, Any]) -> str:
        """Return "current", "of other data", "of an earlier version", or why the run cannot be compared."""
        if record.get("identity", {}).get("version") != IDENTITY_VERSION:
            return "its identity is of an earlier version: train it again to use it"
        try:
            found = self.identities(record)
        except NotCheckedError as error:
            return str(error)
        except IncompleteError:
            return "its data changed since it was extracted: `extract`, then see"
        return "current" if found.run_of(record["identity"]) is not None else "of other data"
