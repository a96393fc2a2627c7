"""A spec written as TOML reads back as the same spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.load import load_spec, shipped
from manifests.schema import RunSpec
from manifests.write import spec_toml


@pytest.mark.parametrize("name", shipped("runs"))
def test_shipped_specs_come_back_equal(name: str, tmp_path: Path) -> None:
    spec = load_spec(name)
    path = tmp_path / "written.toml"
    path.write_text(spec_toml(spec, ("a comment",)), encoding="utf-8")
    assert load_spec(str(path)).model_dump() == spec.model_dump()


def test_awkward_values_come_back_equal(tmp_path: Path) -> None:
    spec = RunSpec.model_validate(
        {
            "name": "x",
            "title": 'quotes "and" \\ back\x7f\tü',
            "dataset": {"name": "jsonl", "folder": "a b", "list": [1, 2.5, True], "table": {"k.x": [{"a": "b"}]}},
            "extractor": {"name": "caption", "rate": 1e-05},
            "models": {"cm_ntm": {"stages": 2, "training": {"learning_rate": 3e-4}}, "avg": {}},
        }
    )
    path = tmp_path / "written.toml"
    path.write_text(spec_toml(spec), encoding="utf-8")
    assert load_spec(str(path)).model_dump() == spec.model_dump()
