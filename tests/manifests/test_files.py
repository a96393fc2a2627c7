"""The readers under all data set modules: paths, text, JSON, JSONL and image folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from manifests.datasets import _files
from manifests.errors import Problems


class Record(BaseModel):
    id: str
    number: int = 0


@pytest.mark.parametrize("path", ["..", "a/../b", "/a", "\\a", "C:\\a", "C:a", "a\\..\\b", "a\0b"])
def test_paths_that_leave_the_folder(path: str) -> None:
    assert _files.climbs(path)


@pytest.mark.parametrize("path", ["a", "a/b.jpg", "a..b", "...", ".", "a b/ü.jpg"])
def test_paths_that_stay(path: str) -> None:
    assert not _files.climbs(path)


def test_option_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    problems = Problems("spec")
    assert _files.option_folder(tmp_path, ".", problems, "folder") == tmp_path
    assert _files.option_folder(Path("elsewhere"), str(tmp_path), problems, "folder") == tmp_path
    assert not problems.found
    assert _files.option_folder(tmp_path, "file", problems, "folder") is None
    assert _files.option_folder(tmp_path, "missing", problems, "folder") is None
    assert [p.what for p in problems.found] == ["is not a folder", "no such folder"]


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \n")
    assert _files.read_names(path, Problems()) == ["one", "two"]


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    problems = Problems()
    assert _files.read_text(tmp_path, problems) is None
    assert "cannot be read" in problems.found[0].what


def test_deep_nesting_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000)
    problems = Problems()
    assert _files.read_json(path, problems, list) is None
    assert "not valid JSON" in problems.found[0].what


def test_records_keep_line_numbers_past_odd_separators(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(
        '{"id": "a\u2028b"}\n\n{"id": 3}\n{"id": "c", "number": "x"}\r\nnot json\n{"id": "d"}', encoding="utf-8"
    )
    problems = Problems()
    records = list(_files.read_records(path, Record, problems))
    assert [(line, record.id) for line, record in records] == [(1, "a\u2028b"), (6, "d")]
    assert [p.place for p in problems.found] == ["line 3, key id", "line 4, key number", "line 5"]
