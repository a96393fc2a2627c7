"""The log of a search: a first line that says what it is, then one line a finished trial. Append-only JSONL."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manifests.errors import FashionNTMError

LOG = "trials.jsonl"


class LogError(FashionNTMError, ValueError):
    """A log of another search, or a damaged one."""


@dataclass(frozen=True)
class Trial:
    """One configuration and its score on every fold, in percent; ``value`` is their mean, None where it failed."""

    number: int
    params: dict[str, Any]
    folds: tuple[float, ...]
    value: float | None
    seconds: float
    failed: str = ""


class TrialLog:
    """Trials on disk. A line that an interruption cut off is dropped; its trial is run again."""

    def __init__(self, path: Path, about: Mapping[str, Any]):
        """Open or begin the log at ``path``. Raises LogError when it is of another search than ``about``."""
        self.path = path
        self.trials: list[Trial] = []
        about = json.loads(json.dumps(about))
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"search": about})
            return
        text = path.read_text(encoding="utf-8")
        whole, _, torn = text.rpartition("\n")
        try:
            first, *lines = [json.loads(line) for line in whole.split("\n")]
            found = first["search"]
            self.trials = [Trial(**{**line, "folds": tuple(line["folds"])}) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise LogError(f"{path}: damaged ({error}): move it away to begin the search anew") from None
        if found != about:
            changed = ", ".join(key for key in about.keys() | found.keys() if about.get(key) != found.get(key))
            raise LogError(f"{path}: a log of another search ({changed} differ): move it away, or choose another --out")
        if torn:
            with open(path, "r+b") as handle:
                handle.truncate(len((whole + "\n").encode()))

    def add(self, trial: Trial) -> None:
        self._append(asdict(trial))
        self.trials.append(trial)

    def _append(self, value: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    @property
    def best(self) -> Trial | None:
        """The trial of the highest value; the earlier one on a tie."""
        scored = [trial for trial in self.trials if trial.value is not None]
        return max(scored, key=lambda t: (t.value, -t.number)) if scored else None
