"""The sentence of the demo's last screen follows from its table."""

from __future__ import annotations

import pytest

from manifests.table_spec import ResultsTable, load_table_spec
from pipeline.analysis.cells import Block, Cell, Column, Row, Table
from pipeline.demo.run import MEMORY, TRAINED, leader_sentence


def table(**values: float | None) -> Table:
    rows = tuple(Row(label=label, cells=(Cell(value=1.0), Cell(value=value))) for label, value in values.items())
    columns = (Column(group="", label="R@1"), Column(group="", label="R@5"))
    return Table(title="demo", columns=columns, blocks=(Block(title="", rows=rows),))


def test_an_average_leads() -> None:
    found = leader_sentence(table(**{"ST + EWMA": 37.2, "ST + LSTM": 35.0, MEMORY: 35.04}), 3240)
    assert found == (
        "ST + EWMA leads here with R@5 37.2 (the CM-NTM: 35.0): it has one number to learn, and 3,240 train sessions are "
        "few for a trained memory; with four times as many they are level, with twenty times as many the memory is far ahead "
        "(docs/memory-pays.md); on ChatIR's dialogues of ten facts the CM-NTM is ahead of every average (docs/dialogues.md)."
    )


@pytest.mark.parametrize(("values", "has"), [({MEMORY: 2.0, "ST + EWMA": 1.0}, "enough for it"), ({"a": None}, "")])
def test_a_memory_leads_or_nothing_is_measured(values: dict[str, float | None], has: str) -> None:
    found = leader_sentence(table(**values), 100)
    assert has in found and "ChatIR" not in found
    assert bool(found) == bool(has)


def test_the_rows_have_these_names() -> None:
    spec = load_table_spec("demo")
    assert isinstance(spec, ResultsTable)
    assert set(TRAINED) <= {row.label for row in spec.rows}
