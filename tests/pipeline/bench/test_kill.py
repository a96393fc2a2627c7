"""The stress run finds what it looks for, and finds nothing here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.bench import kill
from pipeline.bench.kill import ROWS, SHARDS, TABLES, Score, _check, _identity, _window, kill_writers

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "store"
    kill.work(path)
    return path


@pytest.mark.slow  # two kills by the command: test_cli_words.py
def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    score = kill_writers(3, seed=3, folder=tmp_path)
    assert score.passed and score.kills == 3 == sum(score.windows.values())
    assert (score.unreadable, score.lost_rows, score.wrong_rows, score.damaged) == (0, 0, 0, 0)
    assert score.finished == score.equal >= 1 and score.most_redone <= 1
    assert list(tmp_path.iterdir()) == []


def test_a_whole_store_scores_nothing(whole: Path) -> None:
    score = Score()
    assert _check(whole, 0, score) == len(TABLES) * SHARDS * ROWS and score == Score()
    assert _window(whole) == "between two commits"


def test_lost_wrong_and_unreadable_rows_are_counted(whole: Path, tmp_path: Path, monkeypatch) -> None:
    rows = len(TABLES) * SHARDS * ROWS
    score = Score()
    _check(whole, rows + 5, score)
    assert score.lost_rows == 5 and not score.passed

    path, score = shutil.copytree(whole, tmp_path / "flipped"), Score()
    data = bytearray((path / "query-00003.h5").read_bytes())
    data[5000] ^= 1
    (path / "query-00003.h5").write_bytes(bytes(data))
    _check(path, rows, score)
    assert score.unreadable == 1 and "query-00003.h5" in score.problems[0] and not score.passed
    assert _identity(path) != _identity(whole)

    score = Score()
    with monkeypatch.context() as patch:
        patch.setattr(
            kill, "features_of", lambda keys, right=kill.features_of: right(keys) + (keys[:, :1] == keys[7, 0])
        )
        _check(whole, rows, score)
    assert score.wrong_rows >= 1 and not score.passed
    assert not Score(finished=1).passed and Score(finished=1, equal=1).passed and not Score().passed
    assert not Score(finished=1, equal=1, most_redone=2).passed


def test_windows_are_told_by_what_is_left(whole: Path, tmp_path: Path) -> None:
    path = shutil.copytree(whole, tmp_path / "store")
    shutil.copy(path / "image-00000.h5", path / "image-00077.h5")
    assert _window(path) == "renamed, not in the manifest"
    (path / ".manifest.json.1-0a.tmp").write_bytes(b"{")
    assert _window(path) == "replacing the manifest"
    (path / "image-00077.h5").unlink()
    (path / ".manifest.json.1-0a.tmp").unlink()
    (path / ".image-00012.h5.1-0a.tmp").write_bytes(b"half")
    assert _window(path) == "writing a shard"
    shutil.copy(path / "image-00000.h5", path / ".image-00012.h5.1-0a.tmp")
    assert _window(path) == "closed, not renamed"
    assert _window(tmp_path / "nothing") == "making the store"
