"""Files of a search: its log and the tuned spec, whose seal is checked when it is read by path.

The log is append-only JSONL: a header line with the search's identity, then one line per finished trial.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache.files import replace_atomically
from cache.seal import check_seal, write_seal
from manifests.errors import FashionNTMError
from manifests.load import load_spec, shipped
from manifests.schema import RunSpec

LOG = "trials.jsonl"
KIND = "tuned options"
MARK = "-tuned-"  # <spec>-tuned-<model>.toml
AGAIN = "run `tune` again, which writes it again from its trials; to change it by hand, copy it to another folder"


class TuneError(FashionNTMError, ValueError):
    """The search is not possible, no trial succeeded, or its log belongs to another search or is damaged."""


@dataclass(frozen=True)
class Trial:
    """One configuration and its scores on all folds in percent; ``value``: their mean, None if the trial failed."""

    number: int
    params: dict[str, Any]
    folds: tuple[float, ...]
    value: float | None
    seconds: float
    failed: str = ""


class TrialLog:
    """Trials on disk. A truncated last line is dropped, and its trial is repeated."""

    def __init__(self, path: Path, about: Mapping[str, Any]):
        """Open or create the log at ``path``. Raises TuneError if it belongs to another search than ``about``."""
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
            raise TuneError(f"{path}: damaged ({error}): move it away to start a new search") from None
        if found != about:
            changed = ", ".join(key for key in about.keys() | found.keys() if about.get(key) != found.get(key))
            raise TuneError(
                f"{path}: a log of another search ({changed} differ): move it away, or choose another --out"
            )
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
        """Return the trial with the highest value; the earlier one on a tie."""
        scored = [trial for trial in self.trials if trial.value is not None]
        return max(scored, key=lambda t: (t.value, -t.number)) if scored else None


def save_tuned(path: Path, text: str) -> None:
    replace_atomically(path, text.encode())
    write_seal(path.parent, KIND, path.parent.name, [path.name])


def read_spec(name: str, overrides: Sequence[str] = (), given: str = "") -> RunSpec:
    """Return ``load_spec``'s result. Also raises SealError for a tuned spec modified after ``tune`` wrote it."""
    path = Path(name)
    if name not in shipped("runs") and MARK in path.stem and path.is_file():
        folder = path.resolve().parent
        check_seal(folder, KIND, folder.name, AGAIN, only=[path.name])
    return load_spec(name, overrides, given)
