"""The table of datasets (paper Table 1): sessions and images, counted and compared with the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from manifests.commandline import command_line
from manifests.schema import Dataset
from manifests.table_spec import DatasetTable
from pipeline.analysis.cells import Block, Cell, Column, Row, Table, paper_notes

EQUAL = "✓: equal to the paper."
READ = command_line("table", "1", "--data", "DIR")


def build_dataset_table(spec: DatasetTable, dataset_by_name: Mapping[str, Dataset]) -> Table:
    """Count sessions and images of the given datasets (paper Table 1); other datasets keep empty cells."""
    blocks, notes, printed = [], [], any(entry.paper for entry in spec.datasets)
    for entry in spec.datasets:
        dataset = dataset_by_name.get(entry.key)
        rows = []
        for split in ("train", "test"):
            paper = entry.paper.get(split, {})
            counts = _counts(dataset, split, spec.turns) if dataset else {}
            absent = Cell(note=f"the files given hold no {split} part") if dataset else Cell(command=READ)
            cells = []
            for name in spec.columns:
                value, printed_value = counts.get(name), paper.get(name)
                cell = absent if value is None else Cell(value=value)
                gap = None if value is None or printed_value is None else value - printed_value
                cells.append(cell.model_copy(update={"paper": printed_value, "difference": gap}))
            rows.append(Row(label=split.capitalize(), cells=tuple(cells)))
            for turns, count in (dataset.turn_counts(split) if dataset else {}).items():
                if turns not in spec.turns:
                    notes.append(f"{entry.label}, {split}: {count:,} sessions of {turns} turns are not shown.")
        blocks.append(Block(title=entry.label, rows=tuple(rows)))
        notes += [f"{entry.label}: {note.rstrip('.')}." for note in (dataset.notes if dataset else ())]
    return Table(
        title=spec.title,
        columns=(
            *(Column(group="Sessions", label=f"{n} turns", kind="count") for n in spec.turns),
            Column(group="Images", label="total", kind="count"),
        ),
        blocks=tuple(blocks),
        footnotes=(*paper_notes(printed), *([EQUAL] if printed else []), *notes, *spec.notes),
    )


def _counts(dataset: Dataset, split: Literal["train", "test"], turns: Sequence[int]) -> dict[str, int]:
    """Return counts by column; empty if the split has no sessions or no galleries, because it was not counted."""
    sessions, images = dataset.turn_counts(split), dataset.gallery_images(split)
    found = {str(n): sessions.get(n, 0) for n in turns} if sessions else {}
    return found | ({"images": images} if images else {})
