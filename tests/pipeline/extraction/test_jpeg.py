"""``extractor.decode = "torchvision"``: who decodes which file, its own stores, and how far it is from Pillow's decode."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageOps
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from cache import Store, StoreWriter
from manifests.identity import changed_fields
from manifests.schema import Component, Dataset, Gallery, Image, RunSpec, Session, Turn
from pipeline.core.workspace import Workspace
from pipeline.extraction import hub
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.base import ExtractorError
from pipeline.extraction.images import DecodeError, Pixels
from pipeline.extraction.jpeg import Encoded, TorchvisionDecode, _torchvision, header, upright
from pipeline.extraction.precision import decode_agreement
from pipeline.extraction.run import ExtractionError, same_decoder
from pipeline.stores.reextract import reextract
from pipeline.stores.wanted import request_of
from tests.pipeline.extraction.conftest import picture
from tests.pipeline.extraction.helpers import run, shards_of, texts_of

CPU = torch.device("cpu")
CLIP = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
try:
    _torchvision()
    ABSENT = ""
except ExtractorError as error:
    ABSENT = str(error)
needs_torchvision = pytest.mark.skipif(bool(ABSENT), reason=ABSENT)


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 48), mode: str = "RGB", **how: Any) -> bytes:
    out = io.BytesIO()
    picture(seed, size).convert(mode).save(out, "JPEG", **{"quality": 90, **how})
    return out.getvalue()


def rotated(seed: int, orientation: int, thumbnail: bytes = b"") -> bytes:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    return jpeg(seed, exif=exif.tobytes() + thumbnail)


def png(seed: int, size: tuple[int, int] = (40, 48)) -> bytes:
    out = io.BytesIO()
    picture(seed, size).save(out, "PNG")
    return out.getvalue()


def test_the_bytes_decide_who_decodes() -> None:
    plain = jpeg()
    assert header(plain) == Encoded(plain, 40, 48, 1)
    assert header(plain + b"trailing bytes") == Encoded(plain + b"trailing bytes", 40, 48, 1)
    for data in (jpeg(mode="L"), jpeg(progressive=True), jpeg(subsampling=0)):
        assert isinstance(header(data), Encoded)
    found = header(rotated(0, 6))
    assert isinstance(found, Encoded) and found.orientation == 6 and found.size == (48, 40)
    inside = rotated(0, 3, thumbnail=jpeg(1, (8, 8)))
    assert isinstance(header(inside), Encoded)
    for data, why in (
        (png(0), "no JPEG"),
        (jpeg(mode="CMYK"), "CMYK"),
        (plain[:-20], "without its end"),
        (inside[:-20], "without its end"),
        (plain[:8], "header"),
    ):
        assert why in str(header(data))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_rotated_as_pillow_rotates_them(orientation: int) -> None:
    with Pillow.open(io.BytesIO(rotated(0, orientation))) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert np.array_equal(upright(pixels, orientation).permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize("processor", [CLIP, SiglipImageProcessorPil(size={"height": 32, "width": 24})])
def test_torch_resizes_nearly_as_pillow_does(processor: Any) -> None:
    levels = Pixels.of(processor)
    assert levels is not None
    decode = TorchvisionDecode("m", processor, levels, CPU)
    for n, size in enumerate([(300, 400), (32, 32), (61, 16), (500, 40)]):
        wanted = levels.eight_bit(picture(n, size))
        found = decode.resized(picture(n, size))["pixel_values"]
        assert found.dtype == np.uint8 and found.shape == wanted.shape and found.flags.c_contiguous
        assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 2


@pytest.mark.parametrize("steps", [{"do_rescale": False}, {"resample": Pillow.Resampling.LANCZOS}])
def test_a_processor_with_other_steps_is_refused(steps: dict[str, Any]) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, **steps)
    with pytest.raises(hub.ModelError, match=r'use "pillow"'):
        TorchvisionDecode("m", processor, Pixels.of(processor), CPU)


def test_its_rows_have_a_fingerprint_of_their_own(clip_folder: Path, load: Callable[..., Any]) -> None:
    plain, named, other = (
        load("clip", clip_folder, **o) for o in ({}, {"decode": "pillow"}, {"decode": "torchvision"})
    )
    assert plain.semantic() == named.semantic() and not {"jpeg", "options"} & set(plain.semantic())
    assert (
        set(other.semantic()) - set(plain.semantic()) == {"jpeg"}
        and len(changed_fields(plain.semantic(), other.semantic())) == 1
    )
    assert other.exact().semantic() == plain.semantic() and plain.exact() is None


@pytest.mark.skipif(not ABSENT, reason="torchvision is installed")
def test_without_torchvision_the_extra_is_named(
    clip_folder: Path, load: Callable[..., Any], tmp_path: Path, dataset: Dataset
) -> None:
    extractor = load("clip", clip_folder, decode="torchvision")
    with pytest.raises(ExtractorError, match=r"fashion-ntm\[gpu-decode\]"):
        run(dataset, extractor, tmp_path / "stores")
    assert not list((tmp_path / "stores").rglob("manifest.json"))
    with pytest.raises(ExtractorError, match="gpu-decode"):
        extractor.prepare_file(jpeg())
    assert extractor.prepare(picture(0))["pixel_values"].dtype == np.uint8  # resized by torch alone


def test_a_store_has_rows_of_one_decoder(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with StoreWriter(path, dataset="d", extractor="clip", fields={}, execution={"jpeg_decoder": "nvjpeg"}) as writer:
        same_decoder(writer.manifest, "libjpeg-turbo")  # without rows
        writer.commit("image", np.zeros((1, 16), np.uint8), np.ones((1, 4), np.float16), 0.0)
    with StoreWriter(path, dataset="d", extractor="clip", fields={}) as writer:
        same_decoder(writer.manifest, "nvjpeg")
        with pytest.raises(ExtractionError, match=r"decoded by nvjpeg.*--device cuda"):
            same_decoder(writer.manifest, "libjpeg-turbo")


BAD = {"half.jpg": jpeg(90)[:300], "empty.jpg": b"", "thin.png": png(91, (100_000, 1)), "text.jpg": b"no image"}
BY_PILLOW = {"a.png": png(80), "cmyk.jpg": jpeg(81, mode="CMYK")}


@pytest.fixture
def mixed(tmp_path: Path) -> Dataset:
    """JPEGs of several kinds, files that Pillow decodes, and broken ones."""
    files = {f"{n}.jpg": jpeg(n, (40 + n % 3, 48)) for n in range(9)}
    files |= {
        "gray.jpg": jpeg(20, mode="L"),
        "turned.jpg": rotated(21, 6),
        "progressive.jpg": jpeg(22, progressive=True),
    }
    files |= BY_PILLOW | BAD
    root = tmp_path / "images"
    root.mkdir()
    for name, data in files.items():
        (root / name).write_bytes(data)
    images = {name: Image(id=name, file=name, caption=None) for name in files}
    turn = Turn(reference="0.jpg", captions=("is red",))
    session = Session(id="s", category="dress", split="train", turns=(turn, turn), target="1.jpg")
    gallery = Gallery(category="dress", split="train", images=tuple(images))
    return Dataset(name="tiny", images=images, sessions=(session,), galleries=(gallery,), images_root=root)


def loaded(clip_folder: Path, batched: bool = False, decode: str = "torchvision") -> Any:
    spec = RunSpec(
        name="test",
        dataset=Component(name="jsonl"),
        extractor=Component(name="clip", model=str(clip_folder), decode=decode, store_dtype="float32"),
    )
    extractor: Any = load_extractor(spec, "cpu")
    if batched:  # as on a GPU
        extractor.jpegs = TorchvisionDecode("m", extractor.processor, extractor.pixels, CPU, batched=True)
        extractor.images_per_job = 5
    return extractor


@needs_torchvision
@pytest.mark.parametrize(
    "how", [{"workers": 0}, {"workers": 2}, {"batched": True, "workers": 0}, {"batched": True, "workers": 1}]
)
def test_every_route_gives_the_same_store(
    how: dict[str, Any], mixed: Dataset, clip_folder: Path, tmp_path: Path
) -> None:
    batched = how.get("batched", False)
    reference = run(mixed, loaded(clip_folder), tmp_path / "reference", workers=0)
    report = run(mixed, loaded(clip_folder, batched), tmp_path / "stores", workers=how["workers"])
    assert shards_of(report.path) == shards_of(reference.path)
    store = Store.open(report.path)
    assert {f.item for f in store.failures()} == set(BAD) and all(f.stage == "decode" for f in store.failures())
    lines = [json.loads(line) for line in (report.path / "ledger.jsonl").read_text().splitlines()]
    remarks = {line["item"]: line["reason"] for line in lines if "decoded by Pillow" in line.get("reason", "")}
    assert set(remarks) == set(BY_PILLOW) and "no JPEG" in remarks["a.png"] and "CMYK" in remarks["cmyk.jpg"]
    assert "1 image(s) decoded by Pillow: no JPEG" in report.text()
    assert store.execution[-1]["settings"]["jpeg_decoder"] == "libjpeg-turbo"


@needs_torchvision
def test_it_is_near_the_exact_path_and_never_in_its_store(mixed: Dataset, clip_folder: Path, tmp_path: Path) -> None:
    ours = run(mixed, loaded(clip_folder), tmp_path / "stores", workers=0)
    exact = run(mixed, loaded(clip_folder, decode="pillow"), tmp_path / "stores", workers=0)
    assert ours.path != exact.path and "jpeg_decoder" not in Store.open(exact.path).execution[-1]["settings"]
    one, two = (Store.open(report.path) for report in (ours, exact))
    assert set(map(bytes, one.keys("image"))) == set(map(bytes, two.keys("image")))
    keys = one.keys("image")
    a, b = (s.gather("image", s.find("image", keys)).astype(np.float64) for s in (one, two))
    cosine = (a * b).sum(axis=1)
    assert cosine.min() > 0.999 and not np.array_equal(a, b)
    found = decode_agreement(loaded(clip_folder), mixed)["decode"]
    assert found["decoder"] == "libjpeg-turbo" and 0.999 < found["least_cosine_to_pillow"] <= 1
    assert decode_agreement(loaded(clip_folder, decode="pillow"), mixed) == {}


@needs_torchvision
def test_reextract_says_how_far_it_is(mixed: Dataset, clip_folder: Path, tmp_path: Path) -> None:
    extractor = loaded(clip_folder)
    workspace = Workspace(tmp_path / "out")
    report = run(mixed, extractor, workspace.stores, workers=0)
    spec = RunSpec(
        name="test",
        dataset=Component(name="jsonl"),
        extractor=Component(name="clip", model=str(clip_folder), decode="torchvision", store_dtype="float32"),
        composer=Component(name="fusion"),
    )
    request = request_of(spec, mixed, workspace)
    found = reextract(Store.open(report.path), request, 50)
    images, texts = (next(t for t in found.tables if t.table == name) for name in ("image", "text"))
    assert found.matches and images.exact is not None and texts.exact is None
    assert images.exact.rows == 14 and 0.999 < images.exact.least_cosine < 1 and images.exact.top10 > 0.8
    assert "against Pillow's decode: cosine >= " in found.text() and not found.decoders
    assert texts.sampled == len(texts_of(mixed))


@needs_torchvision
def test_one_refused_jpeg_does_not_touch_its_batch(clip_folder: Path) -> None:
    extractor = loaded(clip_folder, batched=True)
    good, data = jpeg(1), jpeg(2)
    broken = data.replace(b"\xff\xdb\x00\x43\x00", b"\xff\xfe\x00\x43\x00")  # a comment instead of a table
    parts = [extractor.prepare_file(one) for one in (good, broken, png(3))]
    found = extractor.decode_ahead(parts)
    assert isinstance(found[1], DecodeError) and isinstance(found[2]["pixel_values"], np.ndarray)
    alone = loaded(clip_folder).prepare_file(good)["pixel_values"]
    assert np.array_equal(found[0]["pixel_values"].numpy(), alone)
    rows = extractor.begin("image", extractor.stack([found[0], found[2]])).numpy()
    assert np.allclose(rows[0], loaded(clip_folder).encode_images([{"pixel_values": alone}])[0], atol=1e-6)
