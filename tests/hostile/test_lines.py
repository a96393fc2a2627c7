"""U+2028, U+0085 and the like in a text do not end a line of a line-based file."""

from __future__ import annotations

from pathlib import Path

from manifests.datasets import datasets
from manifests.datasets._files import read_names
from manifests.errors import Problems
from manifests.schema import Turn
from pipeline.views.serve.saved import SavedDialogues
from tests.worlds import world

ODD = "a\u2028b\x85c\u2029d\x0be\x1cf"


def test_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(f"{ODD}\r\nsecond\n", encoding="utf-8", newline="")
    assert read_names(tmp_path / "names.txt", Problems()) == [ODD, "second"]


def test_saved_dialogues(tmp_path: Path) -> None:
    data = world()
    first, second = (
        s.model_copy(update={"id": f"{n}{ODD}", "turns": (Turn(reference=s.target, captions=(ODD,)), *s.turns)})
        for n, s in enumerate(data.split("test")[:2])
    )
    saved = SavedDialogues(tmp_path / "saved", data, {})
    for session in (first, second, first):
        saved.add(session, [])
    source = datasets.get("jsonl")
    again = source.load(source.Options(**saved.about["options"]), tmp_path).split("test")
    assert again == (second, first)
