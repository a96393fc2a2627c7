"""The matrix: every field that can change a feature makes a store stale, and nothing else does.

Real models of a few thousand weights on disk, real JPEGs. A miss is counted as rows to do, a hit as an extraction in
which no item goes through the model.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cache import Store
from manifests.identity import file_digest
from manifests.schema import Component, Dataset, Image, RunSpec
from pipeline.composition.composers.gated import Gated
from pipeline.core.workspace import Workspace
from pipeline.extraction import images
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.caption import CaptionExtractor
from pipeline.extraction.extractors.clip import ClipExtractor
from pipeline.extraction.plan import open_store, plan_extraction
from pipeline.extraction.run import extract
from pipeline.jobs.stage1 import extract_spec, fit_composer_spec
from pipeline.stores.explain import explain
from pipeline.stores.wanted import NOT_FITTED, request_of
from tests.pipeline.extraction.conftest import build_dataset, picture, save_bert, save_clip
from tests.worlds import world


def edit_json(path: Path, **changes: Any) -> None:
    about = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(about | changes))


def nudge_weights(model: Path) -> None:
    """One weight of one layer, by one part in a thousand."""
    tensors = load_file(model / "model.safetensors")
    name = sorted(n for n, t in tensors.items() if t.dtype == torch.float32 and t.ndim == 2)[0]
    tensors[name].view(-1)[0] *= 1.001
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def edit_vocabulary(model: Path) -> None:
    """Two words change places: the same texts, other ids."""
    text = (model / "tokenizer.json").read_text()
    about = json.loads(text)
    words = about["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (model / "tokenizer.json").write_text(json.dumps(about))


def pool_by_cls(model: Path) -> None:
    (model / "1_Pooling").mkdir()
    edit_json(model / "1_Pooling" / "config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)


def set_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipExtractor, "version", ClipExtractor.version + 1)
    monkeypatch.setattr(CaptionExtractor, "version", CaptionExtractor.version + 1)


# field -> (extractor, change to the model folder or to the process, options)
Change = tuple[str, Callable[[Path, pytest.MonkeyPatch], Any] | None, dict[str, Any]]
SEMANTIC: dict[str, Change] = {
    "weights": ("clip", lambda model, _: nudge_weights(model), {}),
    "weights of a sentence encoder": ("caption", lambda model, _: nudge_weights(model), {}),
    "model configuration": (
        "clip",
        lambda model, _: edit_json(model / "config.json", projection_dim=12, logit_scale_init_value=1.5),
        {},
    ),
    "preprocessing: size": (
        "clip",
        lambda model, _: edit_json(model / "preprocessor_config.json", size={"shortest_edge": 40}),
        {},
    ),
    "preprocessing: mean": (
        "clip",
        lambda model, _: edit_json(model / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]),
        {},
    ),
    "preprocessing: resampling": (
        "clip",
        lambda model, _: edit_json(model / "preprocessor_config.json", resample=2),
        {},
    ),
    "preprocessing: no crop": (
        "clip",
        lambda model, _: edit_json(model / "preprocessor_config.json", do_center_crop=False),
        {},
    ),
    "tokenizer: vocabulary": ("clip", lambda model, _: edit_vocabulary(model), {}),
    "tokenizer: length": ("clip", lambda model, _: edit_json(model / "tokenizer_config.json", model_max_length=9), {}),
    "tokenizer: truncation side": (
        "clip",
        lambda model, _: edit_json(model / "tokenizer_config.json", truncation_side="left"),
        {},
    ),
    "tokenizer: padding side": (
        "caption",
        lambda model, _: edit_json(model / "tokenizer_config.json", padding_side="left"),
        {},
    ),
    "tokenizer: lower case": (
        "caption",
        lambda model, _: edit_json(model / "sentence_bert_config.json", do_lower_case=True),
        {},
    ),
    "pooling": ("caption", lambda model, _: pool_by_cls(model), {}),
    "attribute words": ("caption", None, {"attributes": True}),
    "normalisation": ("clip", None, {"normalise": False}),
    "dtype of the computation": ("clip", None, {"dtype": "bfloat16"}),
    "dtype of the store": ("clip", None, {"store_dtype": "float32"}),
    "decode back end": ("clip", lambda _, patch: patch.setattr(images, "pillow_version", "999.0"), {}),
    "extractor version": ("clip", lambda _, patch: set_version(patch), {}),
    "extractor version of a sentence encoder": ("caption", lambda _, patch: set_version(patch), {}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/clip, models/caption, images/, and stores/ with everything extracted by both."""
    root = tmp_path_factory.mktemp("matrix")
    save_clip(root / "models" / "clip")
    save_bert(root / "models" / "caption")
    data = build_dataset(root / "images")
    old = time.time_ns() - 60_000_000_000
    for path in (root / "images").iterdir():
        os.utime(path, ns=(old, old))
    for name in ("clip", "caption"):
        extract(data, extractor_of(root, name), root / "stores", progress="silent", batch_size=4)
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy whose models, images and stores a test may change."""
    return shutil.copytree(made, tmp_path / "place")


def extractor_of(root: Path, name: str, device: str = "cpu", **options: Any) -> Any:
    model = Component(name=name, model=str(root / "models" / name), **options)
    return load_extractor(RunSpec(name="t", dataset=Component(name="jsonl"), extractor=model), device)


def missed(root: Path, data: Dataset, extractor: Any) -> tuple[int, int]:
    """(rows to do, rows asked for)."""
    stores = root / "stores"
    plan = plan_extraction(data, extractor, open_store(stores, data, extractor), stores=stores)
    return plan.todo, sum(t.unique for t in plan.tables.values())


@pytest.mark.parametrize("field", SEMANTIC)
def test_a_semantic_field_misses_every_row(place: Path, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    name, change, options = SEMANTIC[field]
    data = build_dataset(place / "images")
    todo, unique = missed(place, data, extractor_of(place, name))
    assert todo == 0 < unique
    if change is not None:
        change(place / "models" / name, monkeypatch)
    todo, unique = missed(place, data, extractor_of(place, name, **options))
    assert todo == unique > 0


def retouch(place: Path) -> None:
    for path in (place / "images").iterdir():
        os.utime(path)


def move_images(place: Path) -> None:
    shutil.copytree(place / "images", place / "elsewhere")
    shutil.rmtree(place / "images")
    (place / "elsewhere").rename(place / "images")


def rewrite_model(place: Path) -> None:
    """The same weights in another file layout, with other metadata and times, in another folder."""
    for name in ("clip", "caption"):
        model = place / "models" / name
        tensors = load_file(model / "model.safetensors")
        save_file(dict(reversed(tensors.items())), model / "model.safetensors", {"format": "pt", "note": "copied"})
        about = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(about | {"_name_or_path": "elsewhere"}, indent=7, sort_keys=True))
        shutil.copytree(model, place / "moved" / name)
    shutil.rmtree(place / "models")
    (place / "moved").rename(place / "models")


EXECUTION: dict[str, tuple[Callable[[Path], Any] | None, dict[str, Any]]] = {
    "batch size": (None, {"batch_size": 1}),
    "workers": (None, {"workers": 0}),
    "more workers": (None, {"workers": 5}),
    "shard size": (None, {"shard_rows": 3}),
    "touched times": (retouch, {}),
    "moved images": (move_images, {}),
    "moved and repacked model": (rewrite_model, {}),
    "forgotten digests": (lambda place: [p.unlink() for p in place.glob("stores/*/image-digests.tsv")], {}),
    "moved stores": (
        lambda place: shutil.move(place / "stores", place / "x") and shutil.move(place / "x", place / "stores"),
        {},
    ),
    "threads": (lambda place: torch.set_num_threads(2), {}),
}


@pytest.mark.parametrize("field", EXECUTION)
@pytest.mark.parametrize("name", ["clip", "caption"])
def test_an_execution_field_hits_every_row(place: Path, name: str, field: str) -> None:
    change, how = EXECUTION[field]
    threads = torch.get_num_threads()
    try:
        if change is not None:
            change(place)
        extractor = extractor_of(place, name, contaminated_on=("mt_fashioniq",))  # a label changes no feature either
        report = extract(build_dataset(place / "images"), extractor, place / "stores", progress="silent", **how)
    finally:
        torch.set_num_threads(threads)
    assert report.extracted == extractor.calls == 0 and report.reused > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_another_device_is_the_same_store(place: Path) -> None:
    assert missed(place, build_dataset(place / "images"), extractor_of(place, "clip", "cuda"))[0] == 0


# ---- content


def test_other_bytes_in_an_image_miss_that_row_alone_even_with_its_old_size_and_time(place: Path) -> None:
    data, victim = build_dataset(place / "images"), place / "images" / "i004.jpg"
    status, size = victim.stat(), victim.stat().st_size
    picture(77).save(victim, quality=90)
    other = victim.read_bytes()[:size]
    victim.write_bytes(other + b"\0" * (size - len(other)))
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (victim.stat().st_size, victim.stat().st_mtime_ns) == (size, status.st_mtime_ns)
    extractor = extractor_of(place, "clip")
    plan = plan_extraction(data, extractor, open_store(place / "stores", data, extractor), stores=place / "stores")
    assert [item.names for item in plan.tables["image"].todo] == [("i004",)] and not plan.tables["text"].todo


def test_one_changed_bit_of_an_image_misses_that_row_alone(place: Path) -> None:
    data, victim = build_dataset(place / "images"), place / "images" / "i007.jpg"
    content = bytearray(victim.read_bytes())
    content[-40] ^= 1
    victim.write_bytes(bytes(content))
    extractor = extractor_of(place, "clip")
    report = extract(data, extractor, place / "stores", progress="silent")
    assert report.tables["image"].extracted + report.tables["image"].failed == 1 and extractor.calls <= 1


def test_a_changed_caption_or_feedback_misses_its_own_rows_alone(place: Path) -> None:
    data = build_dataset(place / "images")
    changed = data.model_copy(update={"images": data.images | {"i003": Image(id="i003", caption="a plain top")}})
    extractor = extractor_of(place, "caption")
    report = extract(changed, extractor, place / "stores", progress="silent")
    assert (report.tables["image"].extracted, report.tables["text"].extracted, extractor.calls) == (1, 0, 1)
    first, *rest = data.sessions
    turn = first.turns[0].model_copy(update={"captions": ("more plain",)})
    session = first.model_copy(update={"turns": (turn, *first.turns[1:])})
    again = extractor_of(place, "caption")
    report = extract(
        changed.model_copy(update={"sessions": (session, *rest)}), again, place / "stores", progress="silent"
    )
    assert (report.tables["image"].extracted, again.calls) == (0, 2)  # the turn, and all captions as one text


def test_new_images_are_new_rows_and_nothing_else(place: Path) -> None:
    data = build_dataset(place / "images")
    for n in (50, 51):
        picture(n).save(place / "images" / f"new{n}.jpg")
    more = {f"new{n}": Image(id=f"new{n}", file=f"new{n}.jpg") for n in (50, 51)}
    extractor = extractor_of(place, "clip")
    report = extract(
        data.model_copy(update={"images": data.images | more}), extractor, place / "stores", progress="silent"
    )
    assert (report.tables["image"].extracted, report.tables["text"].extracted, extractor.calls) == (2, 0, 2)


# ---- composer


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSpec, Dataset]:
    root = tmp_path_factory.mktemp("composed")
    save_bert(root / "model")
    spec = RunSpec(
        name="composed",
        dataset=Component(name="jsonl"),
        extractor=Component(name="caption", model=str(root / "model")),
        composer=Component(name="gated", dim=8, hidden=8, fit={"epochs": 1}),
    )
    data = world()
    extract_spec(spec, data, Workspace(root / "out"), "cpu", progress="silent")
    fit_composer_spec(spec, data, Workspace(root / "out"))
    return root, spec, data


COMPOSER: dict[str, Callable[[RunSpec], dict[str, Any]]] = {
    "name": lambda s: {"composer": Component(name="fusion")},
    "options": lambda s: {"composer": Component(name="gated", dim=8, hidden=9, fit={"epochs": 1})},
    "how it was fitted": lambda s: {"composer": Component(name="gated", dim=8, hidden=8, fit={"epochs": 2})},
    "seed of the fit": lambda s: {"composer": Component(name="gated", dim=8, hidden=8, fit={"epochs": 1, "seed": 1})},
    "backbone": lambda s: {"extractor": Component(name="caption", normalise=False, **s.extractor.options)},
}


@pytest.mark.parametrize("field", COMPOSER)
def test_a_composer_s_field_misses_the_composed_store(composed: tuple[Path, RunSpec, Dataset], field: str) -> None:
    root, spec, data = composed
    workspace = Workspace(root / "out")
    store = Store.open(workspace.backbone(spec, data).path.parent / Path(workspace.note(spec).store).name)  # type: ignore[union-attr]
    assert not explain(store, request_of(spec, data, workspace)).stale
    changed = spec.model_copy(update=COMPOSER[field](spec))
    found = explain(store, request_of(changed, data, workspace))
    assert found.stale and not (Path(found.wanted) / "manifest.json").exists()
    if field != "name":
        assert any(change.new == NOT_FITTED for change in found.semantic)


def test_a_composer_s_version_and_weights_miss_too(
    composed: tuple[Path, RunSpec, Dataset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, spec, data = composed
    shutil.copytree(root / "out", tmp_path / "out")
    workspace = Workspace(tmp_path / "out")
    store = workspace.store(spec, data)
    (folder,) = (tmp_path / "out").glob("stores/*/*/composers/*")
    tensors = load_file(folder / "composer.safetensors")
    tensors["gate.0.weight"][0, 0] += 1e-3
    save_file(tensors, folder / "composer.safetensors")
    (folder / "seal.json").unlink()
    edit_json(folder / "composer.json", weights=file_digest(folder / "composer.safetensors"))
    (change,) = explain(store, request_of(spec, data, workspace)).semantic
    assert change.field == "composer.weights"
    monkeypatch.setattr(Gated, "version", 99)
    fields = {c.field for c in explain(store, request_of(spec, data, workspace)).semantic}
    assert "composer.version" in fields
