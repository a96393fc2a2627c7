"""results.h5 and summary.json: whole or not at all, and damage is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache.files import write_json
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.files import ResultFiles, ResultsError, load_results, load_summary, save_results


def evaluation() -> Evaluation:
    return Evaluation(
        session_ids=("kleid/0", "kleid/1", "Röcke/2"),
        categories=("kleid", "kleid", "Röcke"),
        target_ids=("x.jpg", "y.jpg", "z.jpg"),
        ranks=np.array([1, 70000, 3]),
        averaging="sessions",
        subsets={"all": np.ones(3, bool), "no pair seen": np.array([True, False, True])},
        galleries={"kleid": {"images": 80000, "dropped": ["q"]}, "Röcke": {"images": 5, "dropped": []}},
        skipped={"kleid/9": "no feature"},
    )


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    save_results(tmp_path / "run" / "results.h5", evaluation(), "abc")
    found, given = load_results(tmp_path / "run" / "results.h5"), evaluation()
    assert found.ranks.tolist() == given.ranks.tolist()
    assert found.ranks.dtype == np.int64
    for name in ("session_ids", "categories", "target_ids", "averaging", "galleries", "skipped"):
        assert getattr(found, name) == getattr(given, name)
    assert found.metrics() == given.metrics()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["results.h5"]
    with h5py.File(tmp_path / "run" / "results.h5") as file:
        assert file.attrs["run"] == "abc"
        assert file["rank"].dtype == np.int32


def test_a_failed_write_keeps_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"metrics": {}, "seed": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"metrics": {}, "seed": float("nan")})
    assert load_summary(path)["seed"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_truncated_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "results.h5"
    save_results(path, evaluation())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ResultsError, match=r"results\.h5: damaged .*evaluate the run again"):
        load_results(path)


@pytest.mark.parametrize("lost", ["rank", "session_id", "subset_member", "about"])
def test_a_lost_column_is_damage(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "results.h5"
    save_results(path, evaluation())
    with h5py.File(path, "r+") as file:
        del file[lost]
    with pytest.raises(ResultsError, match="damaged"):
        load_results(path)


def test_columns_of_different_lengths_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "results.h5"
    save_results(path, evaluation())
    with h5py.File(path, "r+") as file:
        del file["rank"]
        file["rank"] = np.array([1, 2], dtype=np.int32)
    with pytest.raises(ResultsError, match=r"different lengths \[2, 3\]"):
        load_results(path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.h5"
    save_results(path, evaluation())
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = 99
    with pytest.raises(ResultsError, match=r"format 99.*update the program"):
        load_results(path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    for load, name in ((load_results, "results.h5"), (load_summary, "summary.json")):
        with pytest.raises(ResultsError, match=f"{name}: no such file"):
            load(tmp_path / name)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ResultsError, match="damaged"):
        load_summary(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(ResultsError, match="holds no metrics"):
        load_summary(tmp_path / "summary.json")


IDENTITY = {"sessions": "5e55", "protocol": {"version": 1}}


def saved(run: Path, view: str = "") -> ResultFiles:
    files = ResultFiles(run, run / "views" / view if view else run)
    files.save(evaluation(), {"seed": 1, "identity": IDENTITY, "weights": "", "metrics": evaluation().metrics()})
    return files


def readers(files: ResultFiles) -> list[Callable[[], object]]:
    return [lambda: files.load(IDENTITY), lambda: load_summary(files.summary), lambda: load_results(files.results)]


@pytest.mark.parametrize("view", ["", "turns2-last1"])
def test_a_saved_evaluation_is_sealed(tmp_path: Path, view: str) -> None:
    files = saved(tmp_path / "0a1b", view)
    assert sorted(p.name for p in files.folder.iterdir()) == ["results.h5", "results.seal.json", "summary.json"]
    assert files.load(IDENTITY) == load_summary(files.summary)
    assert load_results(files.results).ranks.tolist() == [1, 70000, 3]


@pytest.mark.parametrize("view", ["", "turns2-last1"])
def test_every_changed_digit_of_a_summary_is_found(tmp_path: Path, view: str) -> None:
    files = saved(tmp_path / "0a1b", view)
    text = files.summary.read_text()
    digits = [at for at, letter in enumerate(text) if letter.isdigit()]
    assert len(digits) > 100
    for at in digits:
        files.summary.write_text(f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}")
        for read in readers(files)[:2]:
            with pytest.raises(ResultsError, match=r"summary\.json: damaged, .* evaluate the run again"):
                read()
    files.summary.write_text(text)
    assert files.load(IDENTITY) is not None


def test_every_changed_rank_is_found(tmp_path: Path) -> None:
    files = saved(tmp_path / "0a1b")
    for row in range(3):
        for bit in range(20):
            with h5py.File(files.results, "r+") as file:
                file["rank"][row] ^= 1 << bit
            for read in readers(files)[::2]:
                with pytest.raises(ResultsError, match=r"results\.h5: damaged"):
                    read()
            with h5py.File(files.results, "r+") as file:
                file["rank"][row] ^= 1 << bit


@pytest.mark.parametrize("name", ["results.h5", "summary.json", "results.seal.json"])
def test_every_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    files = saved(tmp_path / "0a1b")
    file = files.folder / name
    whole = file.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 200)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ResultsError, match=name):
            files.load(IDENTITY)


def test_results_of_another_run_or_view_are_not_taken(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "0a1b"), saved(tmp_path / "2c3d")
    shutil.copytree(one.folder, other.folder, dirs_exist_ok=True)
    view, another = saved(tmp_path / "0a1b", "turns2"), saved(tmp_path / "0a1b", "turns3")
    shutil.copytree(view.folder, another.folder, dirs_exist_ok=True)
    for files, found in ((other, "0a1b, not of evaluation 2c3d"), (another, "0a1b/turns2, not of .* 0a1b/turns3")):
        for read in readers(files):
            with pytest.raises(ResultsError, match=f"its seal is of evaluation {found}: .* copied or renamed"):
                read()
    assert one.load(IDENTITY) is not None and view.load(IDENTITY) is not None


def test_an_evaluation_without_a_seal_is_read(tmp_path: Path) -> None:
    files = saved(tmp_path / "0a1b")
    (files.folder / "results.seal.json").unlink()
    assert files.load(IDENTITY) and load_results(files.results)
