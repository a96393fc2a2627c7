"""Save dialogues as a dataset for ``evaluate``: the spec's train sessions, and the dialogues as test sessions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cache.files import replace_atomically
from manifests.datasets._export import SESSIONS
from manifests.datasets.jsonl import export
from manifests.errors import FashionNTMError, IncompleteError
from manifests.identity import changed_fields
from manifests.schema import Dataset, Session
from pipeline.views.retrieval.trained import Trained, models_of

ABOUT = "dialogues.json"


class _Answering(BaseModel):
    model_config = ConfigDict(extra="allow")

    label: str = ""
    run: str = ""
    weights: str = ""


class _About(BaseModel):
    of: str = ""
    options: dict[str, str] = {}
    made_with: dict[str, Any] = {}
    dialogues: dict[str, list[_Answering]] = {}


class SavedDialogues:
    """A folder in the JSONL format (``manifests.datasets.jsonl``); each saved dialogue adds one line.

    ``dialogues.json`` records the dataset options, the data behind all of its dialogues, and for each dialogue the runs
    that answered, with their weights.
    """

    def __init__(self, folder: Path, dataset: Dataset, made_with: dict[str, Any]):
        """Write the folder unless it exists. ``made_with``: digests of store, galleries and train sessions.

        Raises FashionNTMError if the folder has other contents, IncompleteError if its dialogues were made with other
        data, naming the differences.
        """
        self.folder, self._lock = folder, Lock()
        self._marker = folder / ABOUT
        if folder.exists() and any(folder.iterdir()) and not self._marker.is_file():
            raise FashionNTMError(f"{folder}: holds other files; name a new folder to save dialogues in")
        if not self._marker.is_file():
            train = dataset.model_copy(update={"name": f"{dataset.name}-dialogues", "sessions": dataset.split("train")})
            options = export(train, folder)
            self._write({"of": dataset.name, "options": options, "made_with": made_with, "dialogues": {}})
        elif changed := changed_fields(self.about["made_with"], made_with):
            what = f"its dialogues were made with other data ({'; '.join(changed)})"
            raise IncompleteError(f"{folder}: {what}: name a new folder with --save")

    @property
    def about(self) -> dict[str, Any]:
        """Return the content of ``dialogues.json``. Raises FashionNTMError when it cannot be read."""
        try:
            return _About.model_validate_json(self._marker.read_bytes()).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the whole file"
            what = f"not the record of saved dialogues ({place}: {first['msg']})"
            raise FashionNTMError(f"{self._marker}: {what}; name a new folder with --save") from None

    def of_other_runs(self, trained: Iterable[Trained]) -> str:
        """Describe, on one line, dialogues answered by other runs or by other weights of these; "" if there are none."""
        present = {(m["run"], m["weights"]) for m in models_of(trained)}
        saved = self.about["dialogues"].values()
        strange = [[m for m in models if (m["run"], m["weights"]) not in present] for models in saved]
        others = {f"{m['label']} run {m['run']} weights {m['weights'][:12]}" for models in strange for m in models}
        if not others:
            return ""
        count = sum(map(bool, strange))
        return f"{self.folder}: {count:,} of {len(saved):,} saved dialogues are of other runs ({', '.join(sorted(others))})"

    def add(self, session: Session, trained: Iterable[Trained]) -> None:
        """Append a dialogue that ``trained`` answered, or replace its earlier version."""
        path = self.folder / SESSIONS
        with self._lock:
            about = self.about
            about["dialogues"][session.id] = models_of(trained)
            self._write(about)
            try:
                known = path.read_text(encoding="utf-8").split("\n")  # not splitlines(): U+2028 in texts
            except (FileNotFoundError, UnicodeDecodeError) as error:
                raise FashionNTMError(f"{path}: cannot be read ({error}); name a new folder with --save") from None
            lines = [line for line in known if line and _id_of(line) != session.id]
            lines.append(json.dumps(session.model_dump(), ensure_ascii=False))
            replace_atomically(path, ("\n".join(lines) + "\n").encode())

    def _write(self, about: dict[str, Any]) -> None:
        replace_atomically(self._marker, (json.dumps(about, indent=2) + "\n").encode())


def _id_of(line: str) -> Any:
    """Return the id of a saved session; None for a damaged line, which is kept as it is."""
    try:
        return json.loads(line)["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
