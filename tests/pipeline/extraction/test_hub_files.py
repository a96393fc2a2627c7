"""The files of a model's folder: one that is read changes the fingerprint, one that is not changes neither it nor a row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CTRLTokenizer

from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.hub import Checkpoint, ModelError, config_digest
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
