"""The table of datasets: counts beside the paper's numbers."""

from __future__ import annotations

from manifests.schema import Dataset, Gallery, Image, Session, Turn
from manifests.table_spec import DatasetTable, parse_table_spec
from pipeline.analysis.tables import build_dataset_table


def small() -> Dataset:
    turn = Turn(reference="a", captions=("red",))
    sessions = [
        Session(id=str(n), category="shoes", split="train", turns=(turn,) * n, target="b") for n in (2, 2, 3, 5)
    ]
    sessions = [s.model_copy(update={"id": f"{s.id}-{n}"}) for n, s in enumerate(sessions)]
    return Dataset(
        name="shoes",
        images={name: Image(id=name) for name in "abc"},
        sessions=tuple(sessions),
        galleries=(Gallery(category="shoes", split="train", images=("a", "b", "c")),),
        notes=("dropped session 9: it has one turn",),
    )


def dataset_spec() -> DatasetTable:
    values = {
        "kind": "dataset",
        "title": "T",
        "datasets": [
            {
                "label": "Shoes",
                "dataset": {"name": "shoes"},
                "paper": {"train": {"2": 2, "3": 4, "images": 9}, "test": {"2": 7}},
            },
            {"label": "Other", "dataset": {"name": "other"}},
        ],
    }
    found = parse_table_spec(values, "t.toml")
    assert isinstance(found, DatasetTable)
    return found


def test_a_dataset_is_counted_beside_the_papers_numbers() -> None:
    table = build_dataset_table(dataset_spec(), {"shoes": small()})
    train, test = table.blocks[0].rows
    assert [c.value for c in train.cells] == [2, 1, 0, 3]
    assert [c.paper for c in train.cells] == [2, 4, None, 9]
    assert [c.difference for c in train.cells] == [0, -3, None, -6]
    assert {(c.value, c.note, c.command) for c in test.cells} == {(None, "the files given hold no test part", "")}
    assert test.cells[0].paper == 7
    assert "Shoes, train: 1 sessions of 5 turns are not shown." in table.footnotes
    assert "Shoes: dropped session 9: it has one turn." in table.footnotes
    assert {c.command for c in table.blocks[1].rows[0].cells} == {"fashion-ntm table 1 --data DIR"}
    assert table.commands == {"fashion-ntm table 1 --data DIR": "Train, Test"}
