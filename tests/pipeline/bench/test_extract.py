"""What `bench extract` runs on and what it concludes from its figures."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image as Pillow

from manifests.errors import ManifestError
from pipeline.bench._machine import Load
from pipeline.bench._world import SPOILT, corrupted, draw_images
from pipeline.bench.extract import figures_of, render, run, verdict
from pipeline.extraction.images import DecodeError, decode

SETUP = {
    "device": "cpu",
    "images": 8,
    "decoding_processes": 1,
    "model_threads": 1,
    "cores": 2,
    "pairs": 3,
    "started": {},
}


def test_the_verdict_is_the_busiest_stage() -> None:
    assert verdict({"model": 0.9, "decode": 0.5, "write": 0.01}) == "model-bound"
    assert verdict({"model": 0.4, "decode": 0.9, "stack": 0.95}) == "decode-bound"
    assert verdict({"model": 0.1, "decode": 0.2, "write": 0.8}) == "write-bound"


def test_ratios_are_medians_of_the_rounds_ratios() -> None:
    def rounds(*rates: float) -> list[dict]:
        busy = {"busy model": 0.9, "busy decode": 0.3, "busy write": 0.01}
        return [{"rate": r, "cpu": 1 / r, **busy} for r in rates]

    found = {
        "model": rounds(100, 50, 80),
        "decode": rounds(200, 40, 90),
        "both": rounds(100, 50, 80),
        "engine": rounds(95, 40, 76),
        "one thread": rounds(50, 20, 38),
    }
    figures = figures_of(found, SETUP)
    assert figures["of_all_ceilings"] == pytest.approx(0.95)
    assert figures["of_lower_ceiling"] == 0.95 and figures["gain_of_overlap"] == 2.0
    assert figures["images_per_s"]["engine"] == 76 and figures["verdict"] == "model-bound"
    assert figures["limit_of_the_cores"] == pytest.approx(2 / (1 / 80 + 1 / 90))
    assert "0.95x the lower ceiling" in render(figures) and "verdict: model-bound" in render(figures)


def test_the_ceiling_of_the_cores_counts_those_that_others_left() -> None:
    busy = {"busy model": 0.9, "busy decode": 0.3, "busy write": 0.01}
    found = {
        "model": [{"rate": 100, "cpu": 1 / 100, **busy}],
        "decode": [{"rate": 100, "cpu": 1 / 100, **busy}],
        "both": [{"rate": 100, "cpu": 1 / 50, **busy}],
        "engine": [{"rate": 45, "cpu": 1 / 50, "others": 0.5, "host": 0.0, **busy}],  # one of two cores
        "one thread": [{"rate": 45, "cpu": 1 / 50, **busy}],
        "torchvision decode": [{"rate": 150, "cpu": 1 / 150, **busy}],
        "torchvision engine": [{"rate": 60, "cpu": 1 / 60, **busy}],
        "clip-retrieval": [{"rate": 30, "cpu": 1 / 30, **busy}],
        "torchvision decode 1": [{"rate": 150, "cpu": 1 / 150, **busy}],
        "torchvision decode 2": [{"rate": 270, "cpu": 1 / 150, **busy}],
    }
    figures = figures_of(found, SETUP | {"missing": {"clip-retrieval": "not installed"}})
    assert figures["of_lower_ceiling"] == 0.45 and figures["of_all_ceilings"] == pytest.approx(0.9)  # 45 of 50
    assert figures["torchvision"]["decode_of_pillow"] == 1.5 and figures["torchvision"]["of_lower_ceiling"] == 0.6
    assert figures["torchvision_scaling"] == {"1": 1.0, "2": 0.9} and "scaling" not in figures
    assert figures["of_clip_retrieval"] == 1.5 and figures["cpu_ms_clip_retrieval"] == pytest.approx([1e3 / 30, 20])
    text = render(figures)
    assert "torchvision, 2 process(es)" in text and "not measured: clip-retrieval: not installed" in text


def test_an_unknown_subject_gets_the_nearest() -> None:
    with pytest.raises(ManifestError, match="variants"):
        run(subjects="variant")


def test_spoilt_images_cannot_be_decoded_and_no_two_are_equal(tmp_path: Path) -> None:
    draw_images(tmp_path, 1, (64, 48))
    good = (tmp_path / "000000.jpg").read_bytes()
    decode(good)
    made = [spoil(good, mark) for spoil in SPOILT for mark in (b"one", b"two")]
    for data in filter(None, made):
        with pytest.raises(DecodeError):
            decode(data)
    assert len(set(made)) == len(made) - 1  # the empty ones are equal
    with Pillow.open(io.BytesIO(good)) as image:
        assert image.size == (64, 48)


def test_a_corrupted_copy_differs_in_the_named_files_alone(tmp_path: Path) -> None:
    draw_images(tmp_path / "images", 20, (16, 16))
    with corrupted(tmp_path / "images", tmp_path / "bad", 20, 0.3) as names:
        differ = {
            p.stem
            for p in (tmp_path / "images").iterdir()
            if p.read_bytes() != (tmp_path / "bad" / p.name).read_bytes()
        }
        assert differ == names and len(names) == 6
    assert not (tmp_path / "bad").exists()


def test_load_tells_this_process_from_the_others() -> None:
    with Load() as load:
        began = time.process_time()
        while time.process_time() - began < 0.3:
            pass
    assert load.cpu >= 0.3
    if os.path.exists("/proc/stat"):
        assert load.others is not None and 0 <= load.others <= 1.1


@pytest.mark.slow
def test_every_subject_runs_and_the_failure_list_is_exact(tmp_path: Path) -> None:
    figures = run(
        "engine,bad,naive", images=16, rounds=1, batch_size=4, width=64, layers=1, shard_rows=8, scratch=str(tmp_path)
    )
    assert figures["bad"]["list_is_exact"] and figures["bad"]["images"] == 1
    assert json.dumps(figures) and "1 bad images" in render(figures)
