"""Images in no gallery are noted, since no search can find them."""

from __future__ import annotations

import json
from pathlib import Path

from manifests.datasets.jsonl import JsonLines, Options


def write(folder: Path, name: str, rows: list[dict]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_images_that_no_session_and_no_list_names_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    ids = [f"i{n}" for n in range(5)]
    write(folder, "images", [{"id": i, "caption": f"dress {i}"} for i in ids])
    turns = [{"reference": "i0", "captions": ["longer"]}, {"reference": "i1", "captions": ["in navy"]}]
    session = {"id": "s", "category": "dress", "split": "test", "target": "i2", "turns": turns}
    write(folder, "sessions", [session])
    notes = JsonLines.load(Options(folder="mine"), tmp_path).notes
    assert notes == (
        "2 of 5 images are in no gallery and cannot be found (first: i3): list the candidates in galleries.jsonl",
    )
    write(folder, "galleries", [{"category": "dress", "split": "test", "images": ids}])
    assert JsonLines.load(Options(folder="mine"), tmp_path).notes == ()
