"""Model folders that are incomplete, damaged, pickled, foreign or on the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.hub import ModelError

from .conftest import save_bert, spec_of

Load = Callable[..., Extractor]
TEXTS = ["red dress", "a long sleeve", "blue", "less plain . more red", "top"]


def test_a_hub_id_without_network_says_what_to_do() -> None:
    with pytest.raises(ModelError) as caught:
        load_extractor(spec_of("clip", model="openai/clip-vit-nowhere"), "cpu")
    text = str(caught.value)
    assert "'openai/clip-vit-nowhere' is not on this machine" in text
    assert "--set extractor.model=DIR" in text and "hf download openai/clip-vit-nowhere" in text


def test_a_cached_hub_model_loads_without_network(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--openai--clip-tiny"
    shutil.copytree(clip_folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    extractor = load_extractor(spec_of("clip", model="openai/clip-tiny"), "cpu")
    assert extractor.encode_texts(TEXTS).shape == (5, 12)
    assert extractor.card.licence == "see the model's page" and extractor.card.contaminated_on == ()
    with pytest.raises(ModelError, match=r"\(revision 'v2'\) is not on this machine.*--revision v2"):
        load_extractor(spec_of("clip", model="openai/clip-tiny", revision="v2"), "cpu")


def test_a_missing_folder_is_not_taken_for_a_hub_id() -> None:
    for name in ("/no/such/folder", "./models/x", "a/b/c"):
        with pytest.raises(ModelError, match="no model folder"):
            load_extractor(spec_of("clip", model=name), "cpu")


def test_weights_that_are_not_whole_are_named(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "odd")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605247071\n"
    wanted = f"{len(whole) - 9:,} of {len(whole):,} bytes"
    for content, message in (
        (pointer, "model.safetensors is a pointer file of Git LFS for 605,247,071 bytes, not the data"),
        (b"", "model.safetensors is an empty file, not a safetensors file: copy or export it again"),
        (whole[:-9], f"model.safetensors is truncated, {wanted}: fetch it again"),
        (whole[:40], "model.safetensors is truncated, 40 of "),
    ):
        weights.write_bytes(content)
        with pytest.raises(ModelError, match=message.replace(".", r"\.")):
            load("clip", model=str(folder))


def test_a_pickled_checkpoint_is_refused(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model\.safetensors \(pytorch_model\.bin\).*refused"):
        load("clip", folder)


def test_missing_weights_are_refused_not_drawn_at_random(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(clip_folder, tmp_path / "partial")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of CLIPModel, such as 'visual_projection\.weight'"):
        load("clip", folder)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"auto_map": {"AutoModel": "own.OwnModel"}}))
    with pytest.raises(ModelError, match=r"would be random.*own code.*trust_remote_code = true"):
        load("clip", folder)


def test_an_unused_pooler_may_be_missing(load: Load, tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bare", pooler=False)
    assert load("caption", folder).encode_texts(TEXTS).shape == (5, 16)


def test_a_sentence_encoder_is_no_dual_encoder(load: Load, bert_folder: Path) -> None:
    with pytest.raises(ModelError, match="BertModel without get_image_features"):
        load("clip", bert_folder)


def test_a_damaged_or_foreign_folder_is_named(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load("clip", tmp_path)
    folder = shutil.copytree(clip_folder, tmp_path / "cut")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ModelError, match="is truncated, "):
        load("clip", folder)


OWN_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class OwnConfig(PretrainedConfig):
    model_type = "own_dual_encoder"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.image, self.text = torch.nn.Linear(3, 6), torch.nn.Embedding(64, 6)
        self.post_init()

    def get_image_features(self, pixel_values):
        return self.image(pixel_values.mean((2, 3)))

    def get_text_features(self, input_ids, attention_mask):
        return (self.text(input_ids) * attention_mask[..., None]).sum(1)
"""


def test_a_model_s_own_code_runs_only_when_it_is_trusted(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = shutil.copytree(clip_folder, tmp_path / "own")
    (folder / "own.py").write_text(OWN_CODE)
    names = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own_dual_encoder", "auto_map": names}))
    weights = {"image.weight": torch.rand(6, 3), "image.bias": torch.rand(6), "text.weight": torch.rand(64, 6)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="set trust_remote_code = true"):
        load("clip", folder)
    extractor = load("clip", folder, trust_remote_code=True)  # it returns tensors, not output objects
    assert extractor.encode_texts(TEXTS).shape == (5, 6)
    assert extractor.dim("image") == extractor.dim("text") == 6
    before = extractor.semantic()["config"]
    (folder / "own.py").write_text(OWN_CODE + "\n# another version\n")
    assert load("clip", folder, trust_remote_code=True).semantic()["config"] != before
