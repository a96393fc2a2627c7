"""``fit-extractor``: it learns, resumes to the same weights, leaves out what it cannot read, and ``extract`` uses it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file

from cache import Store
from manifests.errors import FashionNTMError, IncompleteError
from manifests.load import load_dataset
from manifests.schema import Component, Dataset, RunSpec
from pipeline.core.workspace import Workspace
from pipeline.extraction import hub
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.fitting.job import RECORD, fit_extractor_spec, fitted_spec
from pipeline.extraction.fitting.loop import STATE, Progress, cycle
from pipeline.extraction.fitting.triplets import Loader, triplets_of
from pipeline.jobs.stage1 import extract_spec
from tests.processes import forked

from .conftest import build_dataset, save_bert, save_clip
from .small import BERT, VLP, fresh, save_resnet

FIT = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}


def spec_for(name: str, **options: Any) -> RunSpec:
    return RunSpec(name="s", dataset=Component(name="jsonl"), extractor=Component(**{"name": name, **options}))


def vlp(**fit: Any) -> RunSpec:
    return spec_for("fashionvlp", **VLP, dropout=0.2, fit={**FIT, **fit})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


@pytest.fixture
def world(tmp_path: Path) -> Dataset:
    return build_dataset(tmp_path / "images", images=12, sessions=10)


@pytest.mark.parametrize("name", ["fashionvlp", "fashionbert"])
def test_a_fitted_model_is_what_extract_uses(name: str, world: Dataset, tmp_path: Path) -> None:
    sizes = VLP if name == "fashionvlp" else BERT
    spec, workspace = spec_for(name, **sizes, fit=FIT), Workspace(tmp_path / "out")
    with pytest.raises(IncompleteError, match="is not fitted yet: run `fashion-ntm fit-extractor s`"):
        extract_spec(spec, world, workspace, "cpu", progress="silent")
    made = fit_extractor_spec(spec, world, workspace, "cpu")
    assert not made.reused and made.record["steps"] == 2 * -(-len(triplets_of(world.split("train"))) // 8)
    again = fit_extractor_spec(spec, world, workspace, "cpu")
    assert again.reused and again.folder == made.folder and again.record == made.record
    stage = extract_spec(spec, world, workspace, "cpu", progress="silent")
    store = Store.open(stage.extraction.path)
    assert store.tables["query"].dim == store.tables["target"].dim == 32
    fitted = load_extractor(fitted_spec(spec, world, workspace), "cpu")
    assert store.fields["weights"] == fitted.semantic()["weights"]
    other = fit_extractor_spec(spec_for(name, **sizes, fit={**FIT, "seed": 1}), world, workspace, "cpu")
    assert other.folder != made.folder and not same(other.folder, made.folder)
    half = spec_for(name, **{**sizes, "store_dtype": "float16"}, fit=FIT)  # the same weights, other rows
    assert fit_extractor_spec(half, world, workspace, "cpu").reused


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_whatever_the_workers(world: Dataset, tmp_path: Path) -> None:
    folders = [
        fit_extractor_spec(vlp(), world, Workspace(tmp_path / str(n)), "cpu", workers=n).folder for n in (0, 1, 3)
    ]
    assert same(folders[0], folders[1]) and same(folders[0], folders[2])


@pytest.mark.slow
def test_a_stopped_fit_goes_on_to_the_same_weights(world: Dataset, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, twice; dropout and batch normalization are part of the state."""
    whole = fit_extractor_spec(vlp(epochs=3), world, Workspace(tmp_path / "whole"), "cpu")
    workspace, seen = Workspace(tmp_path / "parts"), []

    class Stopped(Exception):
        pass

    def stop_at(step: int) -> Any:
        def on_step(progress: Progress, total: int, rate: float) -> None:
            seen.append(progress.step)
            if progress.step == step:
                raise Stopped

        return on_step

    for step in (3, 7):
        with pytest.raises(Stopped):
            fit_extractor_spec(vlp(epochs=3), world, workspace, "cpu", on_step=stop_at(step), save_seconds=0)
    parts = fit_extractor_spec(vlp(epochs=3), world, workspace, "cpu", on_step=stop_at(-1))
    # a step that was not saved before the stop is taken again, no other
    assert seen == [1, 2, 3, 3, 4, 5, 6, 7, *range(7, whole.record["steps"] + 1)]
    assert same(whole.folder, parts.folder)
    np.testing.assert_allclose(whole.record["loss"], parts.record["loss"], rtol=1e-12)
    assert not (parts.folder / "unfinished").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_resumed_gives_the_weights_of_an_uninterrupted_fit(tmp_path: Path) -> None:
    dataset = build_dataset(tmp_path / "images", images=12, sessions=10)

    def fit(out: Path) -> None:
        fit_extractor_spec(vlp(epochs=10), dataset, Workspace(out), "cpu", save_seconds=0)

    def state(out: Path) -> int:
        found = list(out.glob(f"extractors/*/*/unfinished/{STATE}"))
        try:
            return json.loads(found[0].read_text())["step"] if found else 0
        except (OSError, ValueError):
            return 0

    fit(tmp_path / "whole")
    for after in (3, 17):
        with forked(fit, tmp_path / "killed") as program:
            until = time.monotonic() + 300
            while state(tmp_path / "killed") < after and program.process.is_alive() and time.monotonic() < until:
                time.sleep(0.005)
            os.kill(program.pid, signal.SIGKILL)
        assert program.process.exitcode == -signal.SIGKILL
    with forked(fit, tmp_path / "killed") as program:
        code, _, errors = program.finish(300)
        assert code == 0, errors
    (whole,), (killed,) = (
        [r.parent for r in (tmp_path / n).glob(f"extractors/*/*/{RECORD}")] for n in ("whole", "killed")
    )
    assert same(whole, killed)


def test_unreadable_images_are_left_out_and_counted(world: Dataset, tmp_path: Path) -> None:
    (tmp_path / "images/i003.jpg").write_bytes(b"no image")
    (tmp_path / "images/i005.jpg").unlink()
    made = fit_extractor_spec(vlp(), world, Workspace(tmp_path / "out"), "cpu")
    assert set(made.record["unreadable"]) == {"i003", "i005"} and "2 images could not be read" in made.text()
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(FashionNTMError, match=r"no triplet could be read, the first: i\d+: the file is empty"):
        fit_extractor_spec(vlp(seed=3), world, Workspace(tmp_path / "out"), "cpu")


def test_a_damaged_state_names_the_folder_to_remove(world: Dataset, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")

    def stop(progress: Progress, total: int, rate: float) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_extractor_spec(vlp(), world, workspace, "cpu", on_step=stop, save_seconds=0)
    (file,) = (tmp_path / "out").glob("extractors/*/*/unfinished/state-*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(FashionNTMError, match=r"cannot be resumed .*remove that folder"):
        fit_extractor_spec(vlp(), world, workspace, "cpu")


@pytest.mark.parametrize("towers", [pytest.param("both", marks=pytest.mark.slow), "text", "image"])
def test_clip_is_fine_tuned_in_the_towers_asked_for(towers: str, world: Dataset, tmp_path: Path) -> None:
    start, workspace = save_clip(tmp_path / "clip"), Workspace(tmp_path / "out")
    spec = spec_for("clip", model=str(start), fit={**FIT, "towers": towers}, store_dtype="float32")
    made = fit_extractor_spec(spec, world, workspace, "cpu")
    assert made.record["alpha"] == 0.6  # that of the composer that will make the queries
    before, after = weights(start), weights(made.folder)
    changed = {name.partition("_")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"both": {"text", "vision", "visual"}, "text": {"text"}, "image": {"vision", "visual"}}[towers]
    first = load_extractor(spec_for("clip", model=str(start), store_dtype="float32"), "cpu").semantic()
    fitted = load_extractor(fitted_spec(spec, world, workspace), "cpu").semantic()
    assert {key for key in first if first[key] != fitted[key]} == {"weights"}
    stage = extract_spec(spec, world, workspace, "cpu", progress="silent")
    assert stage.composed is not None and Store.open(stage.composed.path).tables["query"].rows > 0


def test_a_fit_belongs_to_the_content_of_the_weights_it_starts_from(world: Dataset, tmp_path: Path) -> None:
    """Other weights under the same path: another fit. The same weights under another path: the same fit."""
    base, workspace = save_clip(tmp_path / "clip"), Workspace(tmp_path / "out")
    spec = spec_for("clip", model=str(base), fit={**FIT, "epochs": 1})
    first = fit_extractor_spec(spec, world, workspace, "cpu")
    assert first.record["started_from"]["model"]["weights"] == hub.weights_digest(hub.locate(str(base)))
    moved = spec_for("clip", model=str(save_clip(tmp_path / "moved")), fit={**FIT, "epochs": 1})
    assert fit_extractor_spec(moved, world, workspace, "cpu").reused

    save_clip(base, seed=1)
    with pytest.raises(IncompleteError, match="is not fitted yet: run `fashion-ntm fit-extractor s`"):
        fitted_spec(spec, world, workspace)
    second = fit_extractor_spec(spec, world, workspace, "cpu")
    assert not second.reused and second.folder != first.folder and not same(first.folder, second.folder)

    shutil.copyfile(first.folder / RECORD, second.folder / RECORD)  # as if it were the first one's
    for use in (lambda: fitted_spec(spec, world, workspace), lambda: fit_extractor_spec(spec, world, workspace, "cpu")):
        with pytest.raises(
            FashionNTMError, match=r"started from other weights \(model\.weights: .* -> .*fit-extractor"
        ):
            use()


def test_a_fit_belongs_to_the_content_of_its_images(world: Dataset, tmp_path: Path) -> None:
    """Other pictures under the same names are another fit; a touched file is the same one."""
    spec, workspace = spec_for("fashionvlp", **VLP, fit={**FIT, "epochs": 1}), Workspace(tmp_path / "out")
    first = fit_extractor_spec(spec, world, workspace, "cpu")
    assert world.images_root is not None
    used = world.split("train")[0].turns[0].reference
    file = world.images_root / str(world.images[used].file)
    os.utime(file)
    assert fit_extractor_spec(spec, world, workspace, "cpu").reused
    other = next(i for i in world.images.values() if i.id != used)
    file.write_bytes((world.images_root / str(other.file)).read_bytes())
    second = fit_extractor_spec(spec, world, workspace, "cpu")
    assert not second.reused and second.folder != first.folder


def test_the_state_of_a_fit_from_other_weights_is_not_resumed(world: Dataset, tmp_path: Path) -> None:
    base, workspace = save_clip(tmp_path / "clip"), Workspace(tmp_path / "out")
    spec = spec_for("clip", model=str(base), fit=FIT)

    def stop(progress: Progress, total: int, rate: float) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    folders = []
    for seed in (0, 1):
        save_clip(base, seed=seed)
        with pytest.raises(KeyboardInterrupt):
            fit_extractor_spec(spec, world, workspace, "cpu", on_step=stop, save_seconds=0)
        folders += [f for f in (tmp_path / "out").glob("extractors/*/*/unfinished") if f not in folders]
    first, second = folders
    shutil.rmtree(second)
    first.rename(second)
    with pytest.raises(FashionNTMError, match=r"cannot be resumed \(it started from other weights: model\.weights: "):
        fit_extractor_spec(spec, world, workspace, "cpu")


def test_pretrained_backbones_are_where_it_starts(tmp_path: Path) -> None:
    text, image = save_bert(tmp_path / "bert"), save_resnet(tmp_path / "resnet")
    tiny = {**VLP, "text_model": str(text), "image_model": str(image), "max_tokens": 8, "landmarks": 2}
    with pytest.raises(FashionNTMError, match=r"has 32 positions, but 8 word and \d+ visual tokens"):
        fresh("fashionvlp", **{**tiny, "image_size": 128})
    made = fresh("fashionbert", **{**BERT, "text_model": str(text), "image_model": str(image), "max_tokens": 8})
    assert made.dim("query") == 16
    for start, part in ((text, made.network.text), (image, made.network.image)):
        for name, value in weights(start).items():
            if not name.startswith("pooler."):
                torch.testing.assert_close(part.state_dict()[name], value, rtol=0, atol=0)
    assert {n: made.starts[n]["weights"] for n in ("text", "image")} == {
        n: hub.weights_digest(hub.locate(str(f))) for n, f in (("text", text), ("image", image))
    }
    with pytest.raises(FashionNTMError, match="of type 'bert'; a resnet model is needed"):
        fresh("fashionbert", **{**BERT, "image_model": str(text)})


def test_what_cannot_be_fitted_or_loaded_says_so(world: Dataset, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    with pytest.raises(IncompleteError, match="asks for no fitting"):
        fit_extractor_spec(spec_for("caption"), world, workspace, "cpu")
    with pytest.raises(IncompleteError, match=r"set extractor\.fit\.epochs"):
        fit_extractor_spec(spec_for("clip", model="x"), world, workspace, "cpu")
    with pytest.raises(FashionNTMError, match="has no published weights: run fit-extractor"):
        load_extractor(spec_for("fashionvlp"), "cpu")
    with pytest.raises(FashionNTMError, match="holds no fashionvlp: fit-extractor makes one"):
        load_extractor(spec_for("fashionvlp", model=str(save_clip(tmp_path / "clip"))), "cpu")
    with pytest.raises(FashionNTMError, match=r"lower extractor\.fit\.learning_rate"):
        fit_extractor_spec(vlp(learning_rate=1e25, clip_norm=1e30), world, workspace, "cpu")


def test_the_cache_of_prepared_images_is_bounded_and_changes_nothing(world: Dataset) -> None:
    extractor, ids = fresh("fashionvlp", **VLP), list(world.images)
    one = extractor.prepare(Pillow.open(world.images_root / "i000.jpg").convert("RGB")).nbytes
    small, large = Loader(extractor, world, 2, cache_bytes=3 * one), Loader(extractor, world, 0)
    for _ in range(2):
        a, b = (list(loader.images(ids, 5)) for loader in (small, large))
        assert [i for i, _ in a] == [i for i, _ in b] == [ids[0:5], ids[5:10], ids[10:]]
        for (_, x), (_, y) in zip(a, b, strict=True):
            np.testing.assert_array_equal(np.stack(x), np.stack(y))
    assert len(small._kept) == 3 and len(large._kept) == 12


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [cycle(step, 100, 0.1) for step in range(100)]
    assert max(rates) <= 1 and np.argmax(rates) in (9, 10) and rates[0] < 0.1 and rates[-1] < 1e-3
    assert cycle(0, 1, 0.0) == 1 and all(r > 0 for r in rates)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fashionvlp_learns_the_demo(tmp_path: Path) -> None:
    """Real rendered images: unseen sessions are answered far above chance."""
    spec = RunSpec(
        name="demo",
        dataset=Component(name="demo", folder="c", size=48, train_families=3, test_families=1),
        extractor=Component(
            name="fashionvlp",
            **{
                **VLP,
                "width": 48,
                "heads": 4,
                "image_size": 48,
                "image_widths": [16, 32, 64],
                "image_depths": [1, 1, 1],
                "image_stem": 16,
                "max_tokens": 48,
            },
            dropout=0.0,
            pixel_mean=[0.79] * 3,
            pixel_std=[0.21] * 3,
            fit={"epochs": 6, "learning_rate": 2e-3},
        ),
        validation={"fraction": 0.2},
    )
    dataset = load_dataset(spec, tmp_path)
    made = fit_extractor_spec(spec, dataset, Workspace(tmp_path / "out"), "cpu")
    candidates = np.mean([len(g.images) for g in dataset.galleries if g.split == "train"])
    assert made.record["loss"][-1] < 0.9 * made.record["loss"][0]
    assert made.record["validation"]["R@10"] > 2 * 100 * 10 / candidates, (made.record["validation"], candidates)


SPEC = """
name = "tiny"
[dataset]
name = "demo"
folder = "c"
size = 32
train_families = 1
test_families = 1
[extractor]
name = "fashionbert"
width = 16
layers = 1
heads = 2
image_stem = 8
image_widths = [8, 16]
image_depths = [1, 1]
image_layer = "basic"
grid = 2
patch = 16
[extractor.fit]
epochs = 1
[validation]
fraction = 0.3
"""


def test_the_commands_fit_extract_and_show_the_cards(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from cli import main

    (tmp_path / "tiny.toml").write_text(SPEC)
    where = [str(tmp_path / "tiny.toml"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]

    def run(*words: str) -> Any:
        return CliRunner().invoke(main, [*words])

    early = run("extract", *where, "--device", "cpu")
    assert early.exit_code == 3 and "run `fashion-ntm fit-extractor" in early.output and "tiny.toml" in early.output
    fitted = run("fit-extractor", *where, "--device", "cpu")
    assert fitted.exit_code == 0, fitted.output
    assert "step 1 of" in fitted.stderr and "triplets/s" in fitted.stderr
    assert (
        "single-turn on" in fitted.stdout and "R@10" in fitted.stdout and "next: fashion-ntm extract" in fitted.stdout
    )
    again = json.loads(run("fit-extractor", *where, "--json").stdout)
    assert again["reused"] is True and again["validation"]["triplets"] > 0
    assert run("extract", *where, "--device", "cpu").exit_code == 0
    shown = run("ls", "extractors", "--long").stdout
    for words in (
        "patrickjohncyh/fashion-clip",
        "licence: MIT",
        "dims: image 768, text 768",
        "fit-extractor trains it",
        "trained on FashionIQ triplets: yes",
    ):
        assert words in shown
