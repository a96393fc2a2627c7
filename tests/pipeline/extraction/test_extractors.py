"""The extractors on small real models: against transformers itself, alone and in batches, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessorPil, CLIPModel
from transformers.image_processing_backends import PilBackend

from manifests.errors import ManifestError
from manifests.identity import digest
from manifests.schema import Dataset, Image
from pipeline.core.device import DeviceError, available, is_out_of_memory, resolve_device
from pipeline.extraction.extractors import extractors, load_extractor
from pipeline.extraction.extractors.base import Extractor, ExtractorError
from pipeline.extraction.hub import ModelError

from .conftest import picture, save_clip, spec_of, tokenizer

Load = Callable[..., Extractor]
TEXTS = [
    "red dress",
    "a long sleeve with a floral collar and more plain and short",
    "blue",
    "less plain . more red",
    "top",
]
FAMILIES = ["clip", "siglip", "bert"]


@pytest.fixture
def folders(clip_folder: Path, siglip_folder: Path, bert_folder: Path) -> dict[str, tuple[str, Path]]:
    return {"clip": ("clip", clip_folder), "siglip": ("clip", siglip_folder), "bert": ("caption", bert_folder)}


def images_for(extractor: Extractor) -> list:
    return [picture(n, (30 + 7 * n, 50)) for n in range(5)] if extractor.reads == "pixels" else TEXTS


@pytest.mark.parametrize("name", extractors.names())
def test_contract_of_every_family(name: str) -> None:
    family = extractors.get(name)
    assert family.title and family.version >= 1
    assert family.tables in {("image", "text"), ("query", "target")}
    assert family.reads in {"pixels", "caption"}
    assert {"store_dtype", "normalise", "dtype", "contaminated_on"} <= set(family.Options.model_fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_checked_unit_vectors_in_the_stored_dtype(load: Load, folders: dict, family: str) -> None:
    extractor = load(*folders[family])
    rows, texts = extractor.encode_images(images_for(extractor)), extractor.encode_texts(TEXTS)
    assert rows.shape == (5, extractor.dim("image")) and texts.shape == (5, extractor.dim("text"))
    assert rows.dtype == texts.dtype == extractor.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert len(np.unique(rows.round(4), axis=0)) == 5 and len(np.unique(texts.round(4), axis=0)) == 5
    assert extractor.calls == 10
    halves = load(*folders[family], store_dtype="float16", normalise=False).encode_texts(TEXTS)
    assert halves.dtype == np.float16 and np.abs(np.linalg.norm(halves.astype(float), axis=1) - 1).max() > 0.01
    assert extractor.card.licence and extractor.card.source == str(folders[family][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_batch(load: Load, folders: dict, family: str) -> None:
    extractor = load(*folders[family])
    images, texts = images_for(extractor), TEXTS * 4
    alone = np.concatenate([extractor.encode_texts([t]) for t in texts])
    for size in (3, 16):
        batched = np.concatenate([extractor.encode_texts(texts[n : n + size]) for n in range(0, len(texts), size)])
        assert np.abs(batched - alone).max() <= 1e-5
    alone = np.concatenate([extractor.encode_images([i]) for i in images])
    assert np.abs(extractor.encode_images(images) - alone).max() <= 1e-5


def test_clip_agrees_with_transformers(load: Load, clip_folder: Path) -> None:
    extractor, model = load("clip", clip_folder), CLIPModel.from_pretrained(clip_folder)
    tokens = AutoTokenizer.from_pretrained(clip_folder)(TEXTS, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(images=images_for(extractor), return_tensors="pt")
    with torch.inference_mode():
        both = model(**tokens, **pixels)  # its own embeddings are normalized
    np.testing.assert_allclose(extractor.encode_texts(TEXTS), both.text_embeds.numpy(), atol=2e-6)
    np.testing.assert_allclose(extractor.encode_images(images_for(extractor)), both.image_embeds.numpy(), atol=2e-6)
    assert extractor.model.config._attn_implementation == "sdpa"
    assert isinstance(extractor.processor, PilBackend)


def test_siglip_pads_to_the_full_length_and_agrees_with_transformers(load: Load, siglip_folder: Path) -> None:
    extractor, model = load("clip", siglip_folder), AutoModel.from_pretrained(siglip_folder)
    tokens = AutoTokenizer.from_pretrained(siglip_folder)(
        TEXTS, padding="max_length", truncation=True, return_tensors="pt"
    )
    assert set(tokens) == {"input_ids"} and tokens["input_ids"].shape == (5, 12)
    with torch.inference_mode():
        rows = torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    np.testing.assert_allclose(extractor.encode_texts(TEXTS), rows.numpy(), atol=2e-6)
    assert extractor.cut == 1  # the second text has more than 12 tokens with the special ones


def test_caption_is_the_masked_mean_of_the_tokens(load: Load, bert_folder: Path) -> None:
    extractor, model = load("caption", bert_folder), AutoModel.from_pretrained(bert_folder)
    tokens = AutoTokenizer.from_pretrained(bert_folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    rows = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    np.testing.assert_allclose(extractor.encode_texts(TEXTS), rows.numpy(), atol=2e-6)
    np.testing.assert_array_equal(extractor.encode_images(TEXTS), extractor.encode_texts(TEXTS))


def test_caption_reads_the_folder_s_own_pooling_and_length(load: Load, bert_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert_folder, tmp_path / "cls")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5, "do_lower_case": false}')
    extractor, model = load("caption", folder), AutoModel.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, truncation=True, max_length=5, return_tensors="pt"
    )
    with torch.inference_mode():
        rows = torch.nn.functional.normalize(model(**tokens).last_hidden_state[:, 0], dim=-1)
    np.testing.assert_allclose(extractor.encode_texts(TEXTS), rows.numpy(), atol=2e-6)
    assert extractor.semantic()["pooling"] == "cls" and extractor.semantic()["tokenizer"]["max_length"] == 5
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(ModelError, match="pools by weightedmean_tokens"):
        load("caption", folder)


def test_left_padding_counts_no_padding(load: Load, bert_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert_folder, tmp_path / "left")
    left = tokenizer(32, "[CLS]", "[SEP]", ["input_ids", "attention_mask"])
    left.padding_side = "left"
    left.save_pretrained(folder)
    extractor = load("caption", folder)
    ids = extractor.prepare_texts(TEXTS)
    padded = extractor.tokens.pad(ids, torch.device("cpu"))
    assert padded["input_ids"][2, -len(ids[2]) :].tolist() == ids[2].tolist() and padded["input_ids"][2, 0] == 0
    assert padded["attention_mask"].sum(1).tolist() == [len(i) for i in ids]


def test_attribute_words_are_part_of_the_caption(load: Load, bert_folder: Path) -> None:
    image = Image(id="a", caption="  a red   dress ")
    about = {"a": {"fabric": ("floral",), "shape": ("long", "floral")}}
    data = Dataset(name="d", images={"a": image}, sessions=(), galleries=(), attributes=about)
    plain, rich = load("caption", bert_folder), load("caption", bert_folder, attributes=True)
    assert plain.standin(image, data) == "a red dress"
    assert rich.standin(image, data) == "a red dress, floral, long"
    assert rich.standin(Image(id="b", caption=" "), data) is None
    assert digest(plain.semantic()) != digest(rich.semantic())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_near_float32(load: Load, folders: dict, family: str, dtype: str) -> None:
    exact, half = load(*folders[family]), load(*folders[family], dtype=dtype)
    assert next(half.model.parameters()).dtype == getattr(torch, dtype)
    for rows, other in (
        (exact.encode_texts(TEXTS), half.encode_texts(TEXTS)),
        (exact.encode_images(images_for(exact)), half.encode_images(images_for(half))),
    ):
        assert (rows * other).sum(1).min() > 0.999
    assert digest(exact.semantic()) != digest(half.semantic())


def test_one_pixel_wide_images_are_read_as_images(load: Load, clip_folder: Path) -> None:
    extractor = load("clip", clip_folder)
    for size in ((1, 1), (3, 1), (1, 3), (3, 3), (4, 200)):
        assert np.isfinite(extractor.encode_images([picture(0, size)])).all()
        red, square = (Pillow.new("RGB", s, (200, 30, 60)) for s in (size, (40, 40)))  # one colour is one image
        rows = [extractor.encode_images([image]) for image in (red, square)]
        np.testing.assert_allclose(*rows, atol=1e-5)


# ---- identity


def test_fingerprint_ignores_path_device_and_number_of_files(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    first = load("clip", clip_folder).semantic()
    copied = shutil.copytree(clip_folder, tmp_path / "elsewhere" / "under another name")
    (copied / "README.md").write_text("a note")
    assert load("clip", copied).semantic() == first
    model = CLIPModel.from_pretrained(clip_folder)
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied, max_shard_size="10KB")
    assert len(list(copied.glob("model-*.safetensors"))) > 1
    assert load("clip", copied).semantic() == first
    json.dumps(first, allow_nan=False)
    assert str(tmp_path) not in json.dumps(first) and str(clip_folder) not in json.dumps(first)


def test_fingerprint_knows_weights_tokenizer_preprocessing_and_config(
    load: Load, clip_folder: Path, tmp_path: Path
) -> None:
    first = load("clip", clip_folder).semantic()

    def changed(name: str) -> tuple[Path, Callable[[], set[str]]]:
        folder = shutil.copytree(clip_folder, tmp_path / name)

        def fields() -> set[str]:
            now = load("clip", folder).semantic()
            return {key for key in first if first[key] != now[key]}

        return folder, fields

    folder, fields = changed("weights")
    save_clip(folder, seed=5)
    assert fields() == {"weights"}
    folder, fields = changed("tokenizer")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"red"', '"crimson"'))
    assert fields() == {"tokenizer"}
    folder, fields = changed("preprocessing")
    about = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(about | {"image_mean": [0.5, 0.5, 0.5]}))
    assert fields() == {"preprocessing"}
    folder, fields = changed("config")
    about = json.loads((folder / "config.json").read_text())
    about["vision_config"]["layer_norm_eps"] = 1e-3
    (folder / "config.json").write_text(json.dumps(about))
    assert fields() == {"config"}


def test_encoding_does_not_move_the_fingerprint(load: Load, folders: dict) -> None:
    for name, folder in folders.values():
        extractor = load(name, folder)
        before = digest(extractor.semantic())
        extractor.encode_texts(TEXTS)
        assert digest(extractor.semantic()) == before


# ---- what is refused


def test_unknown_names_and_options_get_the_nearest() -> None:
    with pytest.raises(ManifestError, match="did you mean 'caption'"):
        load_extractor(spec_of("captoin", model="x"), "cpu")
    with pytest.raises(ManifestError) as caught:
        load_extractor(spec_of("clip", modle="x", dtype="float8"), "cpu")
    text = str(caught.value)
    assert "extractor.modle" in text and "did you mean 'model'" in text and "extractor.dtype" in text
    assert len(caught.value.problems) == 3  # and the missing model


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert str(resolve_device("auto")) == available()[0]
    with pytest.raises(DeviceError, match="unknown device 'gpu'"):
        resolve_device("gpu")
    if "cuda:0" not in available():
        with pytest.raises(DeviceError, match="this machine has"):
            resolve_device("cuda")
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"))
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and not is_out_of_memory(RuntimeError("shape mismatch"))


class Broken(Extractor):
    title = "broken: an extractor that breaks its contract"

    def dim(self, table: str) -> int:
        return 4

    def _text_features(self, texts: list[str]) -> torch.Tensor:
        return torch.ones(len(texts) + 1, 4)


def test_an_extractor_that_drops_rows_is_caught() -> None:
    extractor = Broken(Extractor.Options(), torch.device("cpu"))
    with pytest.raises(ExtractorError, match=r"gave \(4, 4\) for 3 items"):
        extractor.encode_texts(["a", "b", "c"])
    with pytest.raises(ExtractorError, match="no image tower"):
        extractor.encode_images([np.zeros(3)])
    with pytest.raises(ExtractorError, match="empty batch"):
        extractor.encode_texts([])
    with pytest.raises(ExtractorError, match="no joint model"):
        extractor.encode_pairs([np.zeros(3)], ["a"])
    with pytest.raises(ExtractorError, match="2 images for 1 texts"):
        extractor.encode_pairs([np.zeros(3)] * 2, ["a"])
