"""What is measured before a job: batch size, precision, rates; and what a large catalog would cost by formula."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image as Pillow

from cache import Store
from cli import main
from manifests.schema import Dataset
from pipeline.core.workspace import Workspace
from pipeline.extraction import probe
from pipeline.extraction.cost import Cost, cost_of
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.extractors.clip import ClipExtractor
from pipeline.extraction.plan import plan_extraction
from pipeline.extraction.precision import (
    PRECISIONS,
    PrecisionError,
    agreement,
    checked_agreement,
    extractor_in,
    native_precision,
    sample_of,
    with_precision,
)
from pipeline.extraction.probe import best_size, choose_batch_size, default_workers, measure, recorded_batch_size

from .conftest import build_dataset, spec_of
from .helpers import run, tiny

Load = Callable[..., Extractor]
CPU = torch.device("cpu")


def todo_of(data: Dataset, extractor: Extractor) -> dict:
    return {name: table.todo for name, table in plan_extraction(data, extractor, None).tables.items()}


# ---- batch size


def test_a_large_job_measures_and_a_small_one_does_not(
    load: Load, clip_folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = load("clip", clip_folder)
    assert choose_batch_size(extractor, todo_of(dataset, extractor), dataset.images_root) == {}
    monkeypatch.setattr(probe, "_FEW_ROWS", 1)
    monkeypatch.setattr(probe, "_SECONDS_A_SIZE", 0.01)
    rates = choose_batch_size(extractor, todo_of(dataset, extractor), dataset.images_root)
    assert list(rates)[:2] == [8, 16] and min(rates.values()) > 0 and extractor.calls == 0
    assert choose_batch_size(extractor, {"image": (), "text": ()}, None) == {}


def test_the_smallest_of_the_fastest_is_taken() -> None:
    assert best_size({8: 50.0, 16: 98.0, 32: 100.0, 64: 99.0}) == 16
    assert best_size({8: 50.0, 16: 90.0, 32: 100.0}) == 32


class LittleRoom(ClipExtractor):
    """Its device has room for eleven images."""

    def _image_features(self, images: list) -> torch.Tensor:
        if len(images) > 11:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super()._image_features(images)


def test_sizes_beyond_the_memory_are_not_chosen(
    clip_folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_FEW_ROWS", 1)
    monkeypatch.setattr(probe, "_SECONDS_A_SIZE", 0.01)
    extractor = tiny(LittleRoom, clip_folder)
    assert list(choose_batch_size(extractor, todo_of(dataset, extractor), dataset.images_root)) == [8]


def test_a_resumed_job_keeps_its_batch_size(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    data = build_dataset(tmp_path / "images", sessions=10)
    run(data, load("clip", clip_folder), tmp_path / "stores", batch_size=5)
    more = build_dataset(tmp_path / "images", images=16, sessions=10)
    report = run(more, load("clip", clip_folder), tmp_path / "stores", batch_size="auto")
    sessions = Store.open(report.path).execution
    assert [s["settings"]["batch_size"] for s in sessions] == [5, 5] and report.extracted >= 4
    assert recorded_batch_size(sessions, "cpu") == 5 and recorded_batch_size(sessions, "cuda:0 (X)") is None
    assert recorded_batch_size([{"settings": {"device": "cpu", "batch_size": 9}, "rows": {}}], "cpu") is None


def test_decoding_processes_leave_the_model_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: 12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert default_workers(CPU) == 7 and default_workers(torch.device("cuda")) == 12
    assert default_workers(CPU, 2) == 3 and default_workers(torch.device("cuda"), 5) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    assert default_workers(CPU) == 1
    monkeypatch.setattr("dask.system.cpu_count", lambda: 128)
    assert default_workers(torch.device("cuda"), 8) == 16 == default_workers(torch.device("cuda"))


# ---- precision


@pytest.mark.parametrize("family", ["clip", "caption"])
def test_half_precision_agrees_with_float32_in_any_batch(
    load: Load, clip_folder: Path, bert_folder: Path, dataset: Dataset, family: str
) -> None:
    model = clip_folder if family == "clip" else bert_folder
    full, half = load(family, model), load(family, model, dtype="bfloat16")
    found = agreement(full, half, sample_of(full, dataset))
    assert 0.995 < found["least_cosine"] < 1 and 0 < found["most_difference"] < 0.1
    same = agreement(full, full, sample_of(full, dataset))
    assert same["least_cosine"] > 1 - 1e-9 and same["most_difference"] < 1e-5
    assert full.calls == half.calls == 0


def test_a_sample_has_no_image_that_extraction_refuses(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    data = build_dataset(tmp_path / "images", images=4)
    Pillow.new("L", (100_000, 1)).save(tmp_path / "images/i000.jpg", "PNG")  # needs gigabytes when it is resized
    (tmp_path / "images/i001.jpg").write_bytes(b"no image")
    assert len(sample_of(load("clip", clip_folder), data)["images"]) == 2


def test_what_was_measured_is_on_record_and_the_store_is_another(
    clip_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    from pipeline.extraction.extractors import load_extractor

    spec = spec_of("clip", model=str(clip_folder), store_dtype="float32")
    half = with_precision(spec, "bf16")
    assert half.extractor.options["dtype"] == "bfloat16" and spec.extractor.options.get("dtype") is None
    extractor = load_extractor(half, "cpu")
    report = run(dataset, extractor, tmp_path, check=lambda plan: checked_agreement(half, extractor, dataset))
    record = Store.open(report.path).execution[-1]["settings"]["agreement_with_float32"]
    assert record["least_cosine"] > record["tolerance"] == 0.995
    full = run(dataset, load_extractor(spec, "cpu"), tmp_path, check=lambda plan: {})
    assert full.path != report.path and full.reused == 0
    assert checked_agreement(spec, load_extractor(spec, "cpu"), dataset) == {}


def test_a_precision_too_far_from_float32_is_refused(
    clip_folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.extraction import precision
    from pipeline.extraction.extractors import load_extractor

    monkeypatch.setattr(precision, "LEAST_COSINE", 1.0)
    half = with_precision(spec_of("clip", model=str(clip_folder)), "bf16")
    with pytest.raises(PrecisionError, match=r"less than 1.0: use --precision fp32"):
        checked_agreement(half, load_extractor(half, "cpu"), dataset)


def test_auto_keeps_the_precision_that_has_rows(clip_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    spec, workspace = spec_of("clip", model=str(clip_folder), store_dtype="float32"), Workspace(tmp_path)
    native, _ = native_precision(CPU)
    chosen, extractor, why = extractor_in(spec, dataset, workspace, "cpu", "auto")
    assert chosen.extractor.options["dtype"] == extractor.options.dtype == PRECISIONS[native] and native in why
    other = "fp32" if native == "bf16" else "bf16"
    run(dataset, extractor_in(spec, dataset, workspace, "cpu", other)[1], tmp_path / "stores")
    chosen, extractor, why = extractor_in(spec, dataset, workspace, "cpu", "auto")
    assert chosen.extractor.options["dtype"] == extractor.options.dtype == PRECISIONS[other]
    assert "has rows in it already" in why


# ---- rates and cost


def test_a_probe_runs_the_real_items_and_writes_nothing(
    load: Load, clip_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    extractor = load("clip", clip_folder)
    plan = plan_extraction(dataset, extractor, None, stores=tmp_path / "stores")
    found = measure(extractor, plan, dataset.images_root, workers=1, batch_size=4)
    assert set(found.rates) == {"image", "text"} and extractor.calls == 0 and not (tmp_path / "stores").exists()
    seconds = sum(len(t.todo) / found.rates[name] for name, t in plan.tables.items())
    assert math.isclose(found.seconds(plan), seconds) and math.isclose(found.as_dict(plan)["seconds"], seconds)
    assert "time left at these rates" in found.text(plan) and "rows/s" in found.text(plan)


def test_cost_is_by_formula(load: Load, clip_folder: Path, dataset: Dataset) -> None:
    plan = plan_extraction(dataset, load("clip", clip_folder), None)
    cost = cost_of(plan, 10_000_000, 4096, rate=1000.0)
    assert (cost.shards, cost.width, cost.bytes) == (2442, 12 * 4 + 16, 640_000_000)
    assert cost.hours is not None and math.isclose(cost.hours, 10_000_000 / 1000 / 3600)
    assert "2,442 of 4,096 rows" in cost.text() and "2.8 at 1,000.0 images/s" in cost.text() and "21 min" in cost.text()
    assert cost.devices_for(1) == 3 and "3 for an hour, 1 for a day, 1 for a week" in cost.text()
    fast = Cost("image", 100_000_000, 1040, 4096, 1500.0, per_machine=8)
    assert (fast.devices_for(1), fast.machines_for(1), fast.machines_for(24)) == (19, 3, 1)
    assert "machines      3 for an hour, 1 for a day, 1 for a week, of 8 devices each" in fast.text()
    unknown = Cost("image", 10**9, 1040, 4096, None)
    assert unknown.shards == 244_141 and unknown.as_dict()["device_hours"] is None and "--probe" in unknown.text()


def test_records_of_a_shard_take_as_many_bytes_as_the_cost_says(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    from pipeline.extraction.cost import BYTES_A_SHARD_RECORD

    data = build_dataset(tmp_path / "images", images=40)
    extractor = load("clip", clip_folder)
    sizes = []
    for n, rows in enumerate((40, 1)):
        report = run(data.model_copy(update={"sessions": ()}), extractor, tmp_path / str(n), shard_rows=rows)
        sizes.append(sum((report.path / name).stat().st_size for name in ("manifest.json", "ledger.jsonl")))
    assert np.isclose((sizes[1] - sizes[0]) / 39, BYTES_A_SHARD_RECORD, rtol=0.1)


def test_plan_prints_stale_rows_the_measured_time_and_the_cost(bert_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [{"id": f"i{n}", "caption": f"a red dress {n}"} for n in range(6)]
    turns = [{"reference": "i0", "captions": ["more blue"]}, {"reference": "i1", "captions": ["less plain"]}]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "images.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sessions = [{"id": s, "category": "dress", "split": s, "turns": turns, "target": "i2"} for s in ("train", "test")]
    (folder / "sessions.jsonl").write_text("\n".join(map(json.dumps, sessions)))
    gallery = {"category": "dress", "split": "test", "images": [f"i{n}" for n in range(6)]}
    (folder / "galleries.jsonl").write_text(json.dumps(gallery))
    spec = f"""name = "small"\n[dataset]\nname = "jsonl"\nfolder = "data"\n[extractor]\nname = "caption"\nmodel = "{bert_folder}"\n"""
    (tmp_path / "small.toml").write_text(spec + '[composer]\nname = "fusion"\n[models.last]\n')

    def cli(*words: str) -> str:
        done = CliRunner().invoke(main, [*words, "small.toml", "--data", ".", "--device", "cpu"])
        assert done.exit_code == 0, done.output
        return done.stdout

    before = json.loads(cli("plan", "--json"))
    assert before["todo"] == 9 and before["probe"] is None and not (tmp_path / "out").exists()
    cli("extract", "--batch-size", "4", "--workers", "1")
    done = json.loads(cli("plan", "--json"))
    assert done["todo"] == 0 and {t["stale"] for t in done["tables"].values()} == {0}
    half = json.loads(
        cli("plan", "--json", "--precision", "bf16", "--probe", "--batch-size", "4", "--items", "1000000")
    )
    assert {n: (t["todo"], t["stale"]) for n, t in half["tables"].items()} == {"image": (6, 6), "text": (3, 3)}
    assert all('compute_dtype: "float32" -> "bfloat16"' in t["reason"] for t in half["tables"].values())
    assert half["probe"]["rates"]["image"] > 0 and half["cost"]["device_hours"] > 0
    text = cli("plan", "--precision", "bf16", "--items", "1e6", "--rate", "100")
    assert "stale" in text and "device hours  2.8 at 100.0 images/s" in text
