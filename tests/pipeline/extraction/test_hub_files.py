"""The files of a model's folder: one that is read changes the fingerprint, one that is not changes neither it nor a row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CTRLTokenizer

from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.hub import Checkpoint, ModelError, config_digest, load_model, locate
from pipeline.extraction.tokens import Tokens

from .conftest import picture
from .small import TEXTS

Load = Callable[..., Extractor]
INDEX = "model.safetensors.index.json"


def edit(file: Path, **values: Any) -> None:
    about = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(about | values))


def last_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[-1]


def other_weights(file: Path) -> None:
    save_file({n: v * 1.5 for n, v in load_file(file).items()}, file, metadata={"format": "pt"})


def nest_image_processor(folder: Path) -> None:
    """As newer versions save it: in processor_config.json, which is read first."""
    about = json.loads((folder / "preprocessor_config.json").read_text())
    edit(folder / "processor_config.json", image_processor={**about, "image_mean": [0.1, 0.2, 0.3]})


# file -> (its change, the fields of the fingerprint that it changes)
CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "last shard": (lambda f: other_weights(last_shard(f)), {"weights"}),
    "index: a note": (lambda f: edit(f / INDEX, metadata={"total_size": 1}), set()),
    "a shard that the index does not name": (
        lambda f: save_file({}, f / "model-99999-of-99999.safetensors"),
        set(),
    ),
    "preprocessor_config.json": (
        lambda f: edit(f / "preprocessor_config.json", image_std=[0.1, 0.2, 0.3]),
        {"preprocessing"},
    ),
    "processor_config.json": (nest_image_processor, {"preprocessing"}),
    "tokenizer.json": (
        lambda f: (f / "tokenizer.json").write_text((f / "tokenizer.json").read_text().replace('"red"', '"crimson"')),
        {"tokenizer"},
    ),
    "tokenizer_config.json: length": (lambda f: edit(f / "tokenizer_config.json", model_max_length=7), {"tokenizer"}),
    "tokenizer_config.json: padding": (lambda f: edit(f / "tokenizer_config.json", pad_token="a"), {"tokenizer"}),
    "chat_template.jinja": (lambda f: (f / "chat_template.jinja").write_text("{{ messages }} red"), set()),
    "generation_config.json": (lambda f: edit(f / "generation_config.json", max_length=3), set()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_files_that_are_read_decide(load: Load, clip_folder: Path, tmp_path: Path, what: str) -> None:
    change, fields = CHANGES[what]
    folder = shutil.copytree(clip_folder, tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    CLIPModel.from_pretrained(clip_folder).save_pretrained(folder, max_shard_size="10KB")

    def now() -> tuple[dict[str, Any], np.ndarray]:
        extractor = load("clip", folder)
        rows = extractor.encode_images([picture(0)]), extractor.encode_texts(TEXTS)
        return extractor.semantic(), np.concatenate(rows)

    before, rows = now()
    change(folder)
    after, others = now()
    assert {key for key in before if before[key] != after[key]} == fields
    if not fields:
        np.testing.assert_array_equal(rows, others)


def test_the_nested_image_processor_is_the_one_that_counts(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "nested")
    nest_image_processor(folder)
    before, rows = load("clip", folder).semantic(), load("clip", folder).encode_images([picture(0)])
    edit(folder / "preprocessor_config.json", image_mean=[0.9, 0.9, 0.9])
    assert load("clip", folder).semantic() == before
    np.testing.assert_array_equal(load("clip", folder).encode_images([picture(0)]), rows)


def test_weights_under_another_name_are_refused(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    """transformers would load that file, and the digest would be of model.safetensors."""
    folder = shutil.copytree(clip_folder, tmp_path / "renamed")
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    other_weights(folder / "other.safetensors")
    edit(folder / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(ModelError, match=r"sets transformers_weights = 'other\.safetensors'.*usual name"):
        load("clip", folder)


def test_merges_and_flags_of_a_tokenizer_in_python_count(tmp_path: Path) -> None:
    """Its vocabulary alone does not decide the ids."""

    def tokens(name: str, *merges: str) -> Tokens:
        folder = tmp_path / name
        folder.mkdir()
        vocabulary = ["<unk>", "r@@", "e@@", "d", "re@@", "ed", "<pad>"]
        (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(vocabulary)}))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        files = str(folder / "vocab.json"), str(folder / "merges.txt")
        return Tokens(CTRLTokenizer(*files, pad_token="<pad>"), 8)

    first, second, again = tokens("a", "r e", "e d</w>"), tokens("b", "e d</w>", "r e"), tokens("c", "r e", "e d</w>")
    assert first.encode(["red"])[0].tolist() != second.encode(["red"])[0].tolist()
    assert first.semantic() == again.semantic() and first.semantic() != second.semantic()


def test_a_model_s_own_code_counts_in_folders_too(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "own")
    (folder / "parts").mkdir()
    prints = set()
    for text in ("", "a = 1\n", "a = 2\n"):
        (folder / "parts/layer.py").write_text(text)
        prints.add(config_digest(Checkpoint("own", folder, own_code=True)))
    assert len(prints) == 3


def sharded(clip_folder: Path, folder: Path) -> Path:
    shutil.copytree(clip_folder, folder)
    (folder / "model.safetensors").unlink()
    CLIPModel.from_pretrained(clip_folder).save_pretrained(folder, max_shard_size="10KB")
    return folder


def test_layouts_of_the_hub_give_the_same_features(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    """Shards under other names, and links into a store of blobs as in the hub's cache."""
    wanted = load("clip", clip_folder)
    folder = sharded(clip_folder, tmp_path / "sharded")
    index = json.loads((folder / INDEX).read_text())
    renamed = {name: f"part.{n}.safetensors" for n, name in enumerate(sorted(set(index["weight_map"].values())))}
    for old, new in renamed.items():
        (folder / old).rename(folder / new)
    index["weight_map"] = {tensor: renamed[name] for tensor, name in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    links = tmp_path / "snapshots" / "main"
    links.mkdir(parents=True)
    for file in folder.iterdir():
        (links / file.name).symlink_to(file)
    for layout in (folder, links):
        found = load("clip", layout)
        assert found.semantic() == wanted.semantic()
        np.testing.assert_array_equal(found.encode_texts(TEXTS), wanted.encode_texts(TEXTS))


def test_weights_that_are_not_there_are_named(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    folder = sharded(clip_folder, tmp_path / "sharded")
    first = sorted(folder.glob("model-*.safetensors"))[0]
    first.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=rf"names '{first.name}', which is not there in .*fetch it again"):
        load("clip", folder)
    first.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=rf"names '{first.name}', which is a link to a missing file"):
        load("clip", folder)
    edit(folder / INDEX, weight_map={"x": "../model.safetensors"})
    with pytest.raises(
        ModelError, match=r"names '\.\./model\.safetensors', which is no safetensors file of its folder"
    ):
        load("clip", folder)
    (folder / INDEX).unlink()
    with pytest.raises(ModelError, match=r"has 'model-.*no model\.safetensors\.index\.json.*fetch the index"):
        load("clip", folder)
    for shard in folder.glob("model-*"):
        shard.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        ModelError, match=r"\(pytorch_model\.bin\).*refused: convert them once.*save_pretrained\('DIR'\)"
    ):
        load("clip", folder)


def test_code_that_computes_while_it_is_initialized_is_loaded_with_data(clip_folder: Path, tmp_path: Path) -> None:
    """transformers initializes models on the meta device, where a value cannot be read (Marqo's model does)."""
    folder = shutil.copytree(clip_folder, tmp_path / "own")
    (folder / "own_clip.py").write_text(
        "import torch\nfrom transformers import CLIPConfig, CLIPModel\n\n"
        "class OwnConfig(CLIPConfig):\n    model_type = 'own_clip'\n\n"
        "class OwnClip(CLIPModel):\n    config_class = OwnConfig\n    def __init__(self, config):\n"
        "        super().__init__(config)\n        self.width = int(torch.linspace(0, 1, 3).sum().item())\n"
    )
    edit(
        folder / "config.json",
        model_type="own_clip",
        auto_map={"AutoConfig": "own_clip.OwnConfig", "AutoModel": "own_clip.OwnClip"},
    )
    checkpoint = locate(str(folder), own_code=True)
    found = load_model(checkpoint, torch.float32, torch.device("cpu"))
    plain = load_model(locate(str(clip_folder)), torch.float32, torch.device("cpu"))
    for (name, a), (_, b) in zip(found.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_clip_of_sentence_transformers_is_found_in_its_folder(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "st" / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (tmp_path / "st" / "modules.json").write_text(json.dumps([module]))
    found, wanted = load("clip", tmp_path / "st"), load("clip", clip_folder)
    assert found.semantic() == wanted.semantic()
    np.testing.assert_array_equal(found.encode_images([picture(0)]), wanted.encode_images([picture(0)]))
    (tmp_path / "st" / "modules.json").write_text(json.dumps([module | {"path": "../own"}]))
    with pytest.raises(ModelError, match=r"names the folder '\.\./own', which is not in it"):
        load("clip", tmp_path / "st")
