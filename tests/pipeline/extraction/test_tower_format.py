"""The image tower in other forms: the same rows up to rounding, on record, and undone without a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cache import Store
from cli import main
from manifests.schema import Dataset
from pipeline.extraction import precision
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.precision import FormError, checked_form, sample_of, take_form
from pipeline.extraction.tolerance import tolerance

from .conftest import spec_of
from .helpers import rows_by_key, run

Load = Callable[..., Extractor]


@pytest.mark.parametrize("form", ["channels-last", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_form_gives_the_plain_rows_whatever_the_batch(
    load: Load, clip_folder: Path, dataset: Dataset, tmp_path: Path, form: str
) -> None:
    plain = run(dataset, load("clip", clip_folder, store_dtype="float32"), tmp_path / "plain", batch_size=4)
    extractor = load("clip", clip_folder, store_dtype="float32")
    images = sample_of(extractor, dataset)["images"]
    report = run(
        dataset, extractor, tmp_path / "form", batch_size=3, check=lambda _: checked_form(extractor, images, form)
    )
    settings = Store.open(report.path).execution[-1]["settings"]
    assert settings["form"] == form and 0 <= settings["from_plain"] <= settings["tolerance"]
    assert report.path.name == plain.path.name, "a form is no part of the fingerprint"
    wanted, found = (rows_by_key(Store.open(path), "image") for path in (plain.path, report.path))
    assert wanted.keys() == found.keys() and wanted
    assert all(np.abs(wanted[key] - found[key]).max() <= tolerance("float32", "float32") for key in wanted)


def test_what_undoes_a_form_leaves_nothing(load: Load, clip_folder: Path, dataset: Dataset) -> None:
    extractor = load("clip", clip_folder)
    batch = precision._batch(extractor, sample_of(extractor, dataset)["images"])
    before, tower = precision.trial_rows(extractor, "image", batch), extractor.image_tower()
    assert tower is not None
    undo = take_form(extractor, "channels-last")
    weight = next(p for p in tower.parameters() if p.ndim == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    undo()
    assert weight.is_contiguous() and not tower._forward_pre_hooks and tower._compiled_call_impl is None
    assert np.array_equal(precision.trial_rows(extractor, "image", batch), before) and extractor.calls == 0


def test_a_form_that_cannot_be_is_refused_and_undone(
    load: Load, clip_folder: Path, bert_folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions, extractor = load("caption", bert_folder), load("clip", clip_folder)
    images, tower = sample_of(extractor, dataset)["images"], extractor.image_tower()
    with pytest.raises(FormError, match="runs in one form only: leave out --form compiled"):
        checked_form(captions, images, "compiled")
    with pytest.raises(FormError, match="no image could be read"):
        checked_form(extractor, [], "compiled")
    with monkeypatch.context() as patch:
        patch.setattr(precision, "tolerance", lambda *_: -1.0)
        with pytest.raises(FormError, match=r"--form channels-last does not work here: .*more than"):
            checked_form(extractor, images, "channels-last")

    def without_compiler(*given: object, **named: object) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: without_compiler)
    with pytest.raises(FormError, match="--form compiled does not work here: RuntimeError: no C"):
        checked_form(extractor, images, "compiled")
    assert tower is not None and not tower._forward_pre_hooks and tower._compiled_call_impl is None


def test_the_workers_of_a_cluster_take_the_form(
    load: Load, clip_folder: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    from pipeline.extraction import worker
    from pipeline.extraction.distributed import cluster_for

    monkeypatch.setattr(worker, "_models", {})
    spec = spec_of("clip", model=str(clip_folder), store_dtype="float32")
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            host="127.0.0.1",
            protocol="tcp://",
            dashboard_address=None,
        ) as cluster,
        cluster_for(spec, "cpu", scheduler=cluster.scheduler_address, form="channels-last") as workers,
    ):
        report = run(dataset, load("clip", clip_folder, store_dtype="float32"), tmp_path, cluster=workers)
    (made,) = worker._models.values()
    assert report.extracted and made.image_tower()._forward_pre_hooks and made in worker._formed


def test_the_command_takes_the_form_and_keeps_it_on_record(clip_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    images, lines = dataset.images_root, []
    for image in dataset.images.values():
        lines.append(json.dumps({"id": image.id, "file": image.file}))
    names = [image.id for image in dataset.images.values()]
    turns = [{"reference": names[0], "captions": ["more blue"]}, {"reference": names[1], "captions": ["less plain"]}]
    sessions = [
        {"id": s, "category": "dress", "split": s, "turns": turns, "target": names[2]} for s in ("train", "test")
    ]
    (tmp_path / "images.jsonl").write_text("\n".join(lines))
    (tmp_path / "sessions.jsonl").write_text("\n".join(map(json.dumps, sessions)))
    (tmp_path / "galleries.jsonl").write_text(json.dumps({"category": "dress", "split": "test", "images": names}))
    spec = f"""name = "small"\n[dataset]\nname = "jsonl"\nfolder = "."\nimages = "{images}"\n"""
    spec += f"""[extractor]\nname = "clip"\nmodel = "{clip_folder}"\n[composer]\nname = "fusion"\n[models.last]\n"""
    (tmp_path / "small.toml").write_text(spec)
    asked = ["extract", str(tmp_path / "small.toml"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*asked, "--device", "cpu", "--form", "channels-last"])
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "out" / "stores").glob("*/clip-*")
    assert Store.open(path).execution[-1]["settings"]["form"] == "channels-last"
    assert "note   form channels-last" in done.stdout
