from __future__ import annotations

from pathlib import Path

import pytest

from manifests.errors import ManifestError
from manifests.load import load_spec, portable, read_toml, recorded_spec, shipped, spec_path

GOOD = """
name = "mine"
[dataset]
name = "jsonl"
[extractor]
name = "clip"
model = "folder"
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", shipped("runs"))
def test_every_shipped_spec_loads_and_is_named_like_its_file(name: str) -> None:
    assert load_spec(name).name == name


def test_overrides_set_nested_keys_as_toml_or_as_bare_text(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD), ["training.epochs=7", "extractor.model=some/dir", "models.lstm.hidden=12"])
    assert spec.training.epochs == 7
    assert spec.extractor.options == {"model": "some/dir"}
    assert spec.models == {"lstm": {"hidden": 12}}


@pytest.mark.parametrize("override", ["epochs", "=3", "a..b=1", "name.x=1"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ManifestError, match="--set"):
        load_spec(write(tmp_path, GOOD), [override])


def test_every_problem_of_a_spec_is_found_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("jsonl", "jsonnl") + '[training]\nepoch = 3\nbatch_size = "many"\n'
    with pytest.raises(ManifestError) as caught:
        load_spec(write(tmp_path, text))
    message = str(caught.value)
    assert "key training.epoch: unknown key (did you mean 'epochs'?" in message
    assert "key training.batch_size: found 'many'" in message
    assert "unknown dataset 'jsonnl' (did you mean 'jsonl'?" in message
    assert "3 problems" in message


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="key extractor: missing"):
        load_spec(write(tmp_path, 'name = "x"\n[dataset]\nname = "jsonl"\n'))


def test_broken_toml_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"mine\.toml: not valid TOML: .*line 2"):
        read_toml(Path(write(tmp_path, "a = 1\nb = = 2\n")))


def test_an_unknown_spec_gets_the_nearest_name() -> None:
    with pytest.raises(ManifestError, match="did you mean 'demo'"):
        spec_path("dmeo")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        load_spec(str(tmp_path / "none.toml"))


def test_package_paths_point_into_the_project() -> None:
    model = Path(load_spec("demo").extractor.options["model"])
    assert model.is_absolute() and model.parts[-3:] == ("pipeline", "demo", "model")
    spec = load_spec("demo")
    record = portable(spec.model_dump(mode="json"))
    assert record["extractor"]["model"] == "package:pipeline/demo/model" and str(model) not in str(record)
    assert recorded_spec(record).model_dump() == spec.model_dump()


def test_the_spec_as_asked_for_can_be_pasted(tmp_path: Path) -> None:
    assert load_spec("demo").asked == "demo"
    assert load_spec("demo", given="demo --out x").asked == "demo --out x"
    assert "given" not in load_spec("demo").model_dump()
