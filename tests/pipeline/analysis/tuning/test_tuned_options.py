"""Tuned options are sealed: a spec that ``tune`` wrote is read as it was written, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cache.seal import SealError
from cli import main
from manifests.load import load_spec
from manifests.write import spec_toml
from pipeline.analysis.tuning.trials import read_spec, save_tuned


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    folder = tmp_path / "demo-lstm-0123456789ab"
    folder.mkdir()
    save_tuned(folder / "demo-tuned-lstm.toml", spec_toml(load_spec("demo"), ("Written by tune.",)))
    return folder / "demo-tuned-lstm.toml"


def test_a_tuned_spec_is_read_as_written(tuned: Path) -> None:
    assert read_spec(str(tuned)).models == load_spec("demo").models
    assert read_spec(str(tuned), ["training.epochs=3"]).training.epochs == 3
    assert read_spec("demo").name == "demo"


def test_every_changed_byte_of_a_tuned_spec_is_found(tuned: Path) -> None:
    whole = tuned.read_bytes()
    for at in range(0, len(whole), 7):
        tuned.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SealError, match=r"tuned-lstm\.toml: damaged, .* run `tune` again"):
            read_spec(str(tuned))
    result = CliRunner().invoke(main, ["status", str(tuned), "--out", str(tuned.parent.parent / "out")])
    assert result.exit_code != 0 and "run `tune` again" in result.output


def test_a_copy_elsewhere_may_be_changed_by_hand(tuned: Path, tmp_path: Path) -> None:
    mine = shutil.copy(tuned, tmp_path / "mine.toml")
    Path(mine).write_text(Path(mine).read_text() + "\n# changed\n")
    assert read_spec(str(mine)).name == "demo"
    other = shutil.copytree(tuned.parent, tmp_path / "demo-lstm-ffffffffffff")
    with pytest.raises(SealError, match="its seal is of tuned options demo-lstm-0123456789ab"):
        read_spec(str(other / tuned.name))
    (other / "seal.json").unlink()  # of an earlier version
    assert read_spec(str(other / tuned.name)).name == "demo"
