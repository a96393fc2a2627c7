"""Cross-fitting through stage 1: fitted once, found again, and stale when the number of folds changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cache import Store
from manifests.errors import FashionNTMError, IncompleteError
from manifests.schema import Component, Dataset, RunSpec
from pipeline.composition.checkpoint import fitted, load_composer
from pipeline.core.workspace import Workspace
from pipeline.jobs.stage1 import extract_spec, fit_composer_spec
from pipeline.stores.repair import repair_spec
from tests.pipeline.extraction.conftest import build_dataset, save_bert


def test_folds_are_part_of_the_composer_and_of_its_store(tmp_path: Path) -> None:
    dataset, workspace = build_dataset(None, images=30, sessions=16), Workspace(tmp_path / "out")
    bert = save_bert(tmp_path / "bert")

    def spec(**composer: object) -> RunSpec:
        return RunSpec(
            name="s",
            dataset=Component(name="jsonl"),
            extractor=Component(name="caption", model=str(bert), store_dtype="float32"),
            composer=Component(name="gated", hidden=8, fit={"epochs": 2, "batch_size": 8}, **composer),
        )

    assert extract_spec(spec(folds=2), dataset, workspace, "cpu", progress="silent").composed is None
    crossed = fit_composer_spec(spec(folds=2), dataset, workspace)
    assert crossed.composed.crossed > 0 and "cross-fitted, 2 folds" in crossed.text()
    assert sum(crossed.about["folds"]["sessions"]) == 16
    store = workspace.store(spec(folds=2), dataset)
    assert store.fields["composer"]["folds"]["count"] == 2
    with pytest.raises(IncompleteError, match="changed since its features were composed"):
        workspace.store(spec(), dataset)
    plain = fit_composer_spec(spec(), dataset, workspace)
    assert plain.composed.path != store.path and "folds" not in Store.open(plain.composed.path).fields["composer"]
    assert plain.about["weights"] == crossed.about["weights"]  # the head of all sessions is the same one
    again = fit_composer_spec(spec(folds=2), dataset, workspace)
    assert again.reused and again.composed.path == store.path and sum(again.composed.written.values()) == 0
    done = extract_spec(spec(folds=2), dataset, workspace, "cpu", progress="silent")
    assert done.composed is not None and done.composed.path == store.path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSpec, Dataset]:
    """A workspace with a cross-fitted composer."""
    root = tmp_path_factory.mktemp("sealed")
    dataset = build_dataset(None, images=20, sessions=10)
    spec = RunSpec(
        name="s",
        dataset=Component(name="jsonl"),
        extractor=Component(name="caption", model=str(save_bert(root / "bert")), store_dtype="float32"),
        composer=Component(name="gated", hidden=4, folds=2, fit={"epochs": 1, "batch_size": 8}),
    )
    extract_spec(spec, dataset, Workspace(root / "out"), "cpu", progress="silent")
    fit_composer_spec(spec, dataset, Workspace(root / "out"))
    return root / "out", spec, dataset


FILES = [f"{fold}{file}" for fold in ("", "fold-1/") for file in ("composer.json", "composer.safetensors", "seal.json")]


@pytest.mark.parametrize("name", FILES)
def test_every_changed_byte_of_a_composer_is_found(place: tuple[Path, RunSpec, Dataset], name: str) -> None:
    out, *_ = place
    (folder,) = out.glob("stores/*/*/composers/*")
    file = folder / name
    whole = file.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 100)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(FashionNTMError, match=rf"{file.name}: damaged.* run `fit-composer` or `run`"):
            load_composer(file.parent)
        assert not fitted(folder, 2)
    file.write_bytes(whole)
    assert fitted(folder, 2)


@pytest.mark.parametrize("how", ["fit-composer", "repair"])
@pytest.mark.parametrize("name", ["composer.json", "composer.safetensors", "fold-1/composer.safetensors"])
def test_a_damaged_composer_is_fitted_again(
    place: tuple[Path, RunSpec, Dataset], tmp_path: Path, how: str, name: str
) -> None:
    _, spec, dataset = place
    workspace = Workspace(shutil.copytree(place[0], tmp_path / "out"))
    before = workspace.store(spec, dataset)
    (folder,) = workspace.out.glob("stores/*/*/composers/*")
    file = folder / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-20] + bytes(20))
    found = extract_spec(spec, dataset, workspace, "cpu", progress="silent")
    assert found.composed is None and found.next_command == "fashion-ntm fit-composer s"
    if how == "repair":
        done = repair_spec(spec, dataset, workspace, "cpu", progress="silent")
        assert done.whole and not done.refitted.reused and "composer gated (fitted)" in done.text()
    else:
        assert not fit_composer_spec(spec, dataset, workspace).reused
    assert file.read_bytes() == whole and fitted(folder, 2) and workspace.store(spec, dataset).path == before.path
    assert fit_composer_spec(spec, dataset, workspace).reused
    assert repair_spec(spec, dataset, workspace, "cpu", progress="silent").refitted is None


def test_a_composer_copied_over_another_is_not_taken_for_it(
    place: tuple[Path, RunSpec, Dataset], tmp_path: Path
) -> None:
    out, *_ = place
    (folder,) = out.glob("stores/*/*/composers/*")
    other = shutil.copytree(folder, tmp_path / "composers" / "0123456789ab")
    with pytest.raises(FashionNTMError, match=f"its seal is of composer {folder.name}, not of composer 0123456789ab"):
        load_composer(other)
    swapped = shutil.copytree(folder, tmp_path / "composers" / folder.name)
    shutil.copytree(folder / "fold-0", swapped / "fold-1", dirs_exist_ok=True)
    with pytest.raises(FashionNTMError, match=f"its seal is of composer {folder.name}/fold-0"):
        load_composer(swapped / "fold-1")
    load_composer(shutil.copytree(folder, tmp_path / "anywhere"))  # as weights of another spec
    for file in swapped.glob("**/seal.json"):
        file.unlink()
    assert fitted(swapped, 2)  # of an earlier version
