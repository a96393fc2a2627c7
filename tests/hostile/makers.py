"""Small makers of inputs as users have them, one for each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPEC = """
name = "mine"
[dataset]
name = "jsonl"
folder = "mine"
[extractor]
name = "caption"
model = "none"
[models.avg]
[models.lstm]
"""


def session(number: int, category: str = "dress", split: str = "train", **changes: Any) -> dict[str, Any]:
    """Two turns over three images that no other session has."""
    ids = [f"{category}-{split}-{number}-{n}" for n in range(3)]
    turns = [{"reference": image, "captions": [f"in red {number}"]} for image in ids[:2]]
    about = {"id": f"{category}/{split}/{number}", "category": category, "split": split, "target": ids[2]}
    return {**about, "turns": turns, **changes}


def captions_folder(folder: Path, train: int = 10, test: int = 3, category: str = "dress", **changes: Any) -> Path:
    """A JSONL dataset of captions in ``folder``. ``changes`` to every session."""
    sessions = [session(n, category, "train", **changes) for n in range(train)]
    sessions += [session(n, category, "test", **changes) for n in range(test)]
    return write(folder, sessions)


def write(folder: Path, sessions: list[dict[str, Any]]) -> Path:
    """The two files of a JSONL dataset, with a caption for every image that a session names."""
    folder.mkdir(parents=True, exist_ok=True)
    named = dict.fromkeys(i for s in sessions for i in (*(t["reference"] for t in s["turns"]), s["target"]))
    lines(folder / "images.jsonl", [{"id": image, "caption": f"a garment {image}"} for image in named])
    lines(folder / "sessions.jsonl", sessions)
    return folder


def lines(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
