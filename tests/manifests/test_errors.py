"""How many problems are shown, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manifests.datasets import datasets
from manifests.errors import SHOWN, ManifestError, Problem


def lines(problems: list[Problem]) -> list[str]:
    return [line.strip() for line in str(ManifestError(problems)).split("\n")]


def test_few_problems_are_all_listed() -> None:
    found = lines([Problem("f", f"line {n}", "unknown key", "known: a") for n in (3, 7, 9)])
    assert found == ["3 problems found", *(f"f: line {n}: unknown key (known: a)" for n in (3, 7, 9))]


def test_one_problem_on_every_line_is_one_line() -> None:
    keys = ("color", "size")
    found = lines(
        [Problem("f", f"line {n}, key {k}", "unknown key", f"not {k}") for n in range(1, 10_001) for k in keys]
    )
    assert found[0] == "20,000 problems found"
    assert found[1:] == [
        f"f: line 1, key {k}: unknown key (not {k}); the same 9,999 more times, the last at line 10000, key {k}"
        for k in keys
    ]


def test_many_problems_of_one_kind_are_a_few_lines_and_a_count() -> None:
    kinds = [Problem("f", f"line {n}", f"found 'x{n}'", "expected a number") for n in range(1000)]
    kinds += [Problem("f", f"line {n}", f"image 'i{n}' is also on line {n + 1}") for n in range(1000)]
    found = lines([*kinds, Problem("g", "", "no such file")])
    assert len(found) == 1 + 2 * (SHOWN + 1) + 1
    assert found.count("... and 980 more of this kind") == 2
    assert found[-1] == "g: no such file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps([{"id": f"i{n}"} for n in range(6000)], indent=1), "a JSON list; one object per line is expected"),
        (json.dumps([{"id": f"i{n}"} for n in range(6000)]), "a JSON list; one object per line is expected"),
        (json.dumps({f"i{n}": n for n in range(6000)}, indent=1), "a JSON object over several lines; one object per"),
    ],
)
def test_a_json_file_under_the_name_of_a_jsonl_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "images.jsonl").write_text(text)
    (tmp_path / "sessions.jsonl").write_text('{"id": ' + "[" * 100_000)
    source = datasets.get("jsonl")
    with pytest.raises(ManifestError) as caught:
        source.load(source.Options(folder="."), tmp_path)
    found = str(caught.value).split("\n")
    assert len(found) == 3 and message in found[1] and "sessions.jsonl: line 1" in found[2]
    assert max(map(len, found)) < 500
