"""Dialogues with retracted and negated wishes, on made files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manifests.datasets import datasets
from manifests.errors import ManifestError
from manifests.schema import NO_IMAGE, Dataset

SOURCE = datasets.get("revisions")
DIALOGUES: list[dict[str, Any]] = [
    {
        "session_id": "d1",
        "split": "test",
        "category": "dress",
        "target_ids": ["i9", "i8"],
        "turns": [
            {"reference_image_id": "i1", "text": "with a belt"},
            {"text": "no stripes", "operation": "negate"},
            {"text": "forget the belt", "operation": "retract", "retracts": 1},
            {"text": "in red"},
        ],
    },
    {
        "session_id": "d2",
        "split": "train",
        "category": "dress",
        "target_ids": ["i2"],
        "turns": [{"text": "blue"}, {"text": "not blue after all", "operation": "retract", "retracts": 1}],
    },
]


def load(folder: Path, dialogues: list[dict[str, Any]], **options: Any) -> Dataset:
    (folder / "revisions").mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in dialogues)
    (folder / "revisions" / "dialogues.jsonl").write_text(lines)
    (folder / "captions.json").write_text(json.dumps({f"i{n}": f"garment {n}" for n in range(9)}))
    return SOURCE.load(SOURCE.Options(captions="captions.json", **options), folder)


def test_dialogues_as_they_were_said(tmp_path: Path) -> None:
    dataset = load(tmp_path, DIALOGUES)
    first, second = dataset.sessions
    assert [turn.text for turn in first.turns] == ["with a belt", "no stripes", "forget the belt", "in red"]
    assert [turn.reference for turn in first.turns] == ["i1", NO_IMAGE, NO_IMAGE, NO_IMAGE]
    assert (first.correct, first.targets) == (("i9", "i8"), ("i9",) * 4)
    assert len(second.turns) == 2
    assert dataset.gallery("dress", "test").images == ("i1", "i9", "i8", "i2")
    assert dataset.notes[0] == "2 retractions and 1 negations in 2 dialogues; retracted wishes are kept"
    assert any("1 of 4 images have no caption (first: i9)" in note for note in dataset.notes)


def test_dialogues_without_what_was_retracted(tmp_path: Path) -> None:
    first, second = load(tmp_path, DIALOGUES, retracted="dropped").sessions
    assert [turn.text for turn in first.turns] == ["no stripes", "in red"]
    assert [turn.text for turn in second.turns] == ["not blue after all"]  # nothing else is left


@pytest.mark.parametrize(
    ("turn", "what"),
    [
        ({"text": "x", "operation": "retract"}, "'retracts' belongs to operation 'retract'"),
        ({"text": "x", "retracts": 1}, "'retracts' belongs to operation 'retract'"),
        ({"text": "x", "operation": "retract", "retracts": 2}, "turn 2 retracts turn 2, which is not an earlier one"),
        ({"text": " "}, "turns.1.text"),
        ({"text": "x", "operation": "undo"}, "turns.1.operation"),
        ({"text": "x", "said": "y"}, "turns.1.said: unknown key"),
    ],
)
def test_damaged_turns(tmp_path: Path, turn: dict[str, Any], what: str) -> None:
    record = {**DIALOGUES[1], "turns": [{"text": "blue"}, turn]}
    with pytest.raises(ManifestError, match="line 2") as caught:
        load(tmp_path, [DIALOGUES[0], record])
    assert what in str(caught.value)


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="holds no dialogue"):
        load(tmp_path, [])
