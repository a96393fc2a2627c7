"""The caption extractor on sentence-transformers folders: what their configuration files decide, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from manifests.identity import digest
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.hub import ModelError

Load = Callable[..., Extractor]
TEXTS = ["red dress", "a long sleeve with a floral collar and more plain and short", "blue", "top"]
CHAIN = {"": "Transformer", "2_Pool": "Pooling"}
NORMALIZED = {**CHAIN, "3_Normalize": "Normalize"}
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def modules(chain: dict[str, str], package: str = "sentence_transformers.models") -> list[dict[str, Any]]:
    return [{"idx": n, "name": str(n), "path": p, "type": f"{package}.{k}"} for n, (p, k) in enumerate(chain.items())]


@pytest.fixture
def encoder(bert_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A folder of the tiny BERT with these files beside it: ``{"2_Pool/config.json": {...}}``."""

    def make(files: dict[str, Any], chain: dict[str, str] = CHAIN) -> Path:
        folder = shutil.copytree(bert_folder, tmp_path / f"encoder{len(list(tmp_path.iterdir()))}")
        for name, value in {"modules.json": modules(chain), "2_Pool/config.json": MEAN, **files}.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(value))
        return folder

    return make


def states(folder: Path, texts: list[str], **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(last hidden states [n, tokens, D], attention mask [n, tokens, 1]) by transformers itself."""
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt", **how)
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder)(**tokens).last_hidden_state, tokens["attention_mask"][..., None]


def mean(folder: Path, texts: list[str], **how: Any) -> np.ndarray:
    found, mask = states(folder, texts, **how)
    return ((found * mask).sum(1) / mask.sum(1)).numpy()


def test_modules_json_decides_the_pooling_folder(load: Load, encoder: Callable[..., Path]) -> None:
    """Not the folder's usual name: 1_Pooling, which is not in the chain, says something else."""
    cls = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    for config in (cls, {"pooling_mode": "cls"}):
        folder = encoder({"2_Pool/config.json": config, "1_Pooling/config.json": MEAN})
        extractor = load("caption", folder, normalise=False)
        np.testing.assert_allclose(extractor.encode_texts(TEXTS), states(folder, TEXTS)[0][:, 0].numpy(), atol=2e-6)
        assert extractor.semantic()["pooling"] == "cls"
    new = encoder({"modules.json": modules(CHAIN, "sentence_transformers.base.modules.any")})
    np.testing.assert_allclose(load("caption", new, normalise=False).encode_texts(TEXTS), mean(new, TEXTS), atol=2e-6)


def test_the_default_prompt_is_put_before_every_text(load: Load, encoder: Callable[..., Path]) -> None:
    file, prompts = "config_sentence_transformers.json", {"query": "red top ", "document": ""}
    folder = encoder({file: {"prompts": prompts, "default_prompt_name": "query"}})
    extractor = load("caption", folder, normalise=False)
    wanted = mean(folder, [f"red top {text}" for text in TEXTS])
    np.testing.assert_allclose(extractor.encode_texts(TEXTS), wanted, atol=2e-6)
    np.testing.assert_array_equal(extractor.encode_images(TEXTS), extractor.encode_texts(TEXTS))
    plain = load("caption", encoder({}), normalise=False)
    for about in (
        {"prompts": prompts, "default_prompt_name": None},
        {"prompts": prompts, "default_prompt_name": "document"},
    ):
        other = load("caption", encoder({file: about}), normalise=False)
        assert other.semantic() == plain.semantic()
        np.testing.assert_array_equal(other.encode_texts(TEXTS), plain.encode_texts(TEXTS))
    changed = load("caption", encoder({file: {"prompts": {"query": "blue top "}, "default_prompt_name": "query"}}))
    prints = {digest(e.semantic() | {"normalise": True}) for e in (extractor, plain, changed)}
    assert len(prints) == 3


def test_a_truncated_text_is_named_without_its_prompt(load: Load, encoder: Callable[..., Path]) -> None:
    about = {"prompts": {"query": "red top "}, "default_prompt_name": "query"}
    folder = encoder({"config_sentence_transformers.json": about, "sentence_bert_config.json": {"max_seq_length": 6}})
    extractor = load("caption", folder, normalise=False)
    wanted = mean(folder, [f"red top {text}" for text in TEXTS], truncation=True, max_length=6)
    np.testing.assert_allclose(extractor.encode_texts(TEXTS), wanted, atol=2e-6)
    assert extractor.tokens.take_truncated(TEXTS) == {TEXTS[1]}  # the prompt counts as part of the maximum length


def test_a_normalization_module_is_applied(load: Load, encoder: Callable[..., Path]) -> None:
    """Also where the rows are stored as the model gives them. Rows of unit norm are the same with and without it."""
    plain, folder = encoder({}), encoder({}, NORMALIZED)
    rows = load("caption", folder, normalise=False).encode_texts(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rows, load("caption", plain).encode_texts(TEXTS), atol=1e-6)
    fields = [load("caption", f, normalise=n).semantic() for n in (False, True) for f in (plain, folder)]
    assert fields[0] != fields[1] and fields[2] == fields[3]


def test_the_maximum_length_is_read_under_its_older_names(load: Load, encoder: Callable[..., Path]) -> None:
    folder = encoder({"sentence_roberta_config.json": {"max_seq_length": 5, "do_lower_case": True}})
    extractor = load("caption", folder, normalise=False)
    assert extractor.semantic()["tokenizer"]["max_length"] == 5 and extractor.semantic()["tokenizer"]["lowercase"]
    wanted = mean(folder, TEXTS, truncation=True, max_length=5)
    np.testing.assert_allclose(extractor.encode_texts(TEXTS), wanted, atol=2e-6)


SETTINGS = "sentence_bert_config.json"
DENSE = {"in_features": 16, "out_features": 6, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "LSTM": ({}, {**CHAIN, "3_LSTM": "LSTM"}, "has a LSTM layer in modules.json"),
    "Dense before pooling": ({}, {"": "Transformer", "3_Dense": "Dense"}, "has the modules Transformer, Dense"),
    "Dense pickled": ({"3_Dense/config.json": DENSE}, {**CHAIN, "3_Dense": "Dense"}, "no 3_Dense/model.safetensors"),
    "activation": (
        {"3_Dense/config.json": {**DENSE, "activation_function": "torch.nn.modules.activation.Tahn"}},
        {**CHAIN, "3_Dense": "Dense"},
        "activation Tahn .*did you mean 'Tanh'",
    ),
    "another model": ({}, {"": "CLIPModel"}, "has a CLIPModel layer"),
    "no pooling": ({}, {"": "Transformer"}, "has the modules Transformer in modules.json"),
    "transformer elsewhere": (
        {},
        {"0_Transformer": "Transformer", "2_Pool": "Pooling"},
        "in the folder '0_Transformer'",
    ),
    "outside": ({}, {"": "Transformer", "../2_Pool": "Pooling"}, "outside of its folder, '../2_Pool'"),
    "pooling config gone": ({}, {"": "Transformer", "5_Pool": "Pooling"}, "lacks 5_Pool/config.json"),
    "no list": ({"modules.json": {"a": 1}}, CHAIN, "no list of modules"),
    "weighted": ({"2_Pool/config.json": {"pooling_mode_weightedmean_tokens": True}}, CHAIN, "pools by weightedmean"),
    "two modes": ({"2_Pool/config.json": {"pooling_mode": ["mean", "max"]}}, CHAIN, r"pools by mean \+ max"),
    "token norm": (
        {"3_Normalize/config.json": {"module_input_name": "token_embeddings"}},
        NORMALIZED,
        "normalizes something else",
    ),
    "prompt left out": (
        {
            "2_Pool/config.json": {**MEAN, "include_prompt": False},
            "config_sentence_transformers.json": {"prompts": {"query": "a "}, "default_prompt_name": "query"},
        },
        CHAIN,
        "include_prompt = false",
    ),
    "unknown prompt": (
        {"config_sentence_transformers.json": {"prompts": {"retrieval": "a "}, "default_prompt_name": "retrival"}},
        CHAIN,
        "no prompt 'retrival'.*did you mean 'retrieval'",
    ),
    "prompts no object": (
        {"config_sentence_transformers.json": {"prompts": "a", "default_prompt_name": "query"}},
        CHAIN,
        "have a value of another type",
    ),
    "padding beyond the embeddings": (
        {
            "tokenizer_config.json": {
                "pad_token": "new",
                "unk_token": "[UNK]",
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
        },
        CHAIN,
        "its tokenizer gives id .* embeddings: take both from one download",
    ),
    "sparse": ({"config_sentence_transformers.json": {"model_type": "SparseEncoder"}}, CHAIN, "is a SparseEncoder"),
    "length": ({SETTINGS: {"max_seq_length": "long"}}, CHAIN, "max_seq_length = 'long'"),
    "model arguments": ({SETTINGS: {"config_args": {"num_labels": 3}}}, CHAIN, "sets config_args"),
    "another task": ({SETTINGS: {"transformer_task": "fill-mask"}}, CHAIN, "sets transformer_task = 'fill-mask'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_applied_is_refused_by_name(load: Load, encoder: Callable[..., Path], what: str) -> None:
    files, chain, message = REFUSED[what]
    with pytest.raises(ModelError, match=message):
        load("caption", encoder(files, chain))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", ["lasttoken", "max_tokens"])
def test_the_last_token_and_the_maximum_leave_the_padding_out(
    load: Load, encoder: Callable[..., Path], mode: str, side: str
) -> None:
    folder = encoder({"2_Pool/config.json": {f"pooling_mode_{mode}": True}})
    about = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**about, "padding_side": side}))
    rows = load("caption", folder, normalise=False).encode_texts(TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        found = states(folder, [text])[0][0]
        wanted = found[-1] if mode == "lasttoken" else found.amax(0)
        if side == "right":  # BERT's absolute positions move with padding on the left
            np.testing.assert_allclose(row, wanted.numpy(), atol=2e-6)
        assert np.isfinite(row).all()


def test_dense_layers_follow_the_pooling(load: Load, encoder: Callable[..., Path]) -> None:
    torch.manual_seed(3)
    first, second = torch.nn.Linear(16, 6), torch.nn.Linear(6, 4, bias=False)
    plain = {
        "in_features": 6,
        "out_features": 4,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    files = {"3_Dense/config.json": DENSE, "4_Dense/config.json": plain}
    folder = encoder(files, {**CHAIN, "3_Dense": "Dense", "4_Dense": "Dense", "5_Normalize": "Normalize"})
    for layer, name in ((first, "3_Dense"), (second, "4_Dense")):
        save_file({f"linear.{n}": v for n, v in layer.state_dict().items()}, folder / name / "model.safetensors")
    extractor = load("caption", folder, normalise=False)
    with torch.inference_mode():
        wanted = second(torch.tanh(first(torch.from_numpy(mean(folder, TEXTS)))))
    wanted = torch.nn.functional.normalize(wanted, dim=-1)
    np.testing.assert_allclose(extractor.encode_texts(TEXTS), wanted.numpy(), atol=2e-6)
    assert extractor.dim("text") == 4
    before = digest(extractor.semantic())
    save_file({"linear.weight": 2 * second.weight.detach()}, folder / "4_Dense" / "model.safetensors")
    assert digest(load("caption", folder, normalise=False).semantic()) != before
    save_file({"linear.weight": torch.zeros(5, 6)}, folder / "4_Dense" / "model.safetensors")
    with pytest.raises(ModelError, match="damaged layer 4_Dense"):
        load("caption", folder)


def test_the_files_of_the_current_library_are_read(load: Load, encoder: Callable[..., Path]) -> None:
    """As version 6 writes them."""
    files = {
        SETTINGS: {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
        "2_Pool/config.json": {"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": True},
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
        },
    }
    folder = encoder(files, NORMALIZED)
    np.testing.assert_allclose(
        load("caption", folder, normalise=False).encode_texts(TEXTS),
        torch.nn.functional.normalize(torch.from_numpy(mean(folder, TEXTS)), dim=-1).numpy(),
        atol=2e-6,
    )
