"""Dialogues kept as a dataset that ``evaluate`` reads: the spec's own train sessions, and the dialogues as test sessions."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock

from manifests.datasets._export import SESSIONS
from manifests.datasets.jsonl import export
from manifests.errors import FashionNTMError
from manifests.schema import Dataset, Session

ABOUT = "dialogues.json"


class SavedDialogues:
    """A folder in the JSONL format (``manifests.datasets.jsonl``); every saved dialogue is one more line of it."""

    def __init__(self, folder: Path, dataset: Dataset):
        """Write the folder unless it is there already. Raises FashionNTMError where it holds something else."""
        self.folder, self._lock = folder, Lock()
        marker = folder / ABOUT
        if folder.exists() and any(folder.iterdir()) and not marker.is_file():
            raise FashionNTMError(f"{folder}: holds other files; name a new folder to save dialogues in")
        if not marker.is_file():
            train = dataset.model_copy(update={"name": f"{dataset.name}-dialogues", "sessions": dataset.split("train")})
            options = export(train, folder)
            marker.write_text(json.dumps({"of": dataset.name, "options": options}, indent=2) + "\n", encoding="utf-8")

    @property
    def options(self) -> dict[str, str]:
        """Options under which the jsonl dataset reads the folder."""
        return json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))["options"]

    def add(self, session: Session) -> None:
        """Append a dialogue; saved again, it replaces its earlier form."""
        path = self.folder / SESSIONS
        with self._lock:
            lines = [
                line
                for line in path.read_text(encoding="utf-8").split("\n")  # a text may hold U+2028
                if line and json.loads(line)["id"] != session.id
            ]
            lines.append(json.dumps(session.model_dump(), ensure_ascii=False))
            part = path.with_suffix(".part")
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
            part.replace(path)
