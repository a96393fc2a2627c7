"""An adapter in a model's folder: merged and part of the fingerprint, or refused by name; never ignored."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from manifests.identity import digest
from pipeline.extraction import hub
from pipeline.extraction.adapters import CONFIG, WEIGHTS, without_adapter
from pipeline.extraction.extractors import extractors
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.hub import ModelError

from .conftest import picture
from .small import BERT, TEXTS, fresh
from .small_mllm import save_qwen3vl

Load = Callable[..., Extractor]
RANK, ALPHA = 2, 8
LORA = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": "acme/base", "revision": None}
PLACES = {"caption": ".output.dense", "clip": ".q_proj"}


def add_adapter(folder: Path, place: str, seed: int = 0, **config: Any) -> Path:
    """LoRA for every layer named ``place``, as PEFT saves it: its configuration and its two factors of each matrix."""
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith(f"{place}.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, weight.shape[1], generator=draw)
            tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], RANK, generator=draw)
    about = {**LORA, "target_modules": [place.removeprefix(".")], **config}
    (folder / CONFIG).write_text(json.dumps(about))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def merged_by_hand(adapted: Path, to: Path) -> Path:
    """A plain folder whose weights are W + alpha / r * B A."""
    shutil.copytree(adapted, to)
    state, adapter = load_file(to / "model.safetensors"), load_file(to / WEIGHTS)
    for name in [n for n in adapter if n.endswith("lora_A.weight")]:
        change = adapter[name.replace("lora_A", "lora_B")] @ adapter[name] * ALPHA / RANK
        state[name.removeprefix("base_model.model.").replace("lora_A.", "")] += change
    save_file(state, to / "model.safetensors", metadata={"format": "pt"})
    (to / CONFIG).unlink(), (to / WEIGHTS).unlink()
    return to


@pytest.fixture(params=PLACES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(kind: str, clip_folder: Path, bert_folder: Path) -> Path:
    return {"clip": clip_folder, "caption": bert_folder}[kind]


@pytest.fixture
def adapted(kind: str, base: Path, tmp_path: Path) -> Path:
    return add_adapter(shutil.copytree(base, tmp_path / "adapted"), PLACES[kind])


def test_an_adapter_is_merged_into_the_weights(
    load: Load, kind: str, base: Path, adapted: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    state = torch.get_rng_state()
    extractor = load(kind, adapted)
    assert torch.equal(state, torch.get_rng_state())
    rows, plain = extractor.encode_texts(TEXTS), load(kind, base).encode_texts(TEXTS)
    by_hand = load(kind, merged_by_hand(adapted, tmp_path / "merged")).encode_texts(TEXTS)
    np.testing.assert_allclose(rows, by_hand, atol=2e-6)
    assert (rows * plain).sum(1).min() < 0.9
    half = load(kind, adapted, dtype="bfloat16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert (half.encode_texts(TEXTS) * rows).sum(1).min() > 0.99


def test_an_adapted_model_saved_after_a_fit_has_no_adapter_left(load: Load, clip_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    family = extractors.get("clip")
    folder = add_adapter(shutil.copytree(clip_folder, tmp_path / "adapted"), PLACES["clip"])
    made = family.fresh(family.Options(model=str(folder)), torch.device("cpu"), TEXTS)  # type: ignore[attr-defined]
    made.save(tmp_path / "fitted")
    assert not list((tmp_path / "fitted").glob("*adapter*"))
    np.testing.assert_array_equal(
        load("clip", tmp_path / "fitted").encode_texts(TEXTS), load("clip", folder).encode_texts(TEXTS)
    )


def test_an_adapter_is_part_of_the_weights_digest(kind: str, base: Path, adapted: Path) -> None:
    """So of every fingerprint. What says where the base lay is not."""

    def now() -> str:
        return hub.weights_digest(hub.locate(str(adapted)))

    prints = [hub.weights_digest(hub.locate(str(base))), now()]
    add_adapter(adapted, PLACES[kind], base_model_name_or_path="/elsewhere", peft_version="9", inference_mode=True)
    assert now() == prints[1]
    add_adapter(adapted, PLACES[kind], lora_alpha=1)
    prints.append(now())
    add_adapter(adapted, PLACES[kind], seed=1)
    assert len({*prints, now()}) == 4


def test_the_fingerprint_of_an_adapted_model_differs_in_its_weights(
    load: Load, kind: str, base: Path, adapted: Path
) -> None:
    pytest.importorskip("peft")
    before, after = load(kind, base).semantic(), load(kind, adapted).semantic()
    assert {key for key in before if before[key] != after[key]} == {"weights"} and digest(before) != digest(after)


def test_without_peft_an_adapter_is_refused(
    load: Load, kind: str, adapted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"has an adapter in its folder.*pip install peft"):
        load(kind, adapted)


def test_transformers_never_sees_an_adapter(adapted: Path) -> None:
    """With PEFT installed it would load one by itself."""
    checkpoint = hub.locate(str(adapted))
    with without_adapter(checkpoint) as folder:
        names = {path.name for path in folder.iterdir()}
        assert names == {path.name for path in adapted.iterdir()} - {CONFIG, WEIGHTS}
        assert (folder / "model.safetensors").read_bytes() == (adapted / "model.safetensors").read_bytes()
    assert (adapted / "model.safetensors").is_file() and not folder.exists()


def test_a_folder_with_an_adapter_alone_names_its_base(load: Load, kind: str, adapted: Path) -> None:
    (adapted / "config.json").unlink()
    with pytest.raises(ModelError, match=r"is only an adapter for acme/base: copy adapter_config\.json"):
        load(kind, adapted)


def test_a_part_of_an_adapter_is_refused(load: Load, kind: str, adapted: Path) -> None:
    whole = (adapted / CONFIG).read_text()
    (adapted / CONFIG).unlink()
    with pytest.raises(ModelError, match=r"needs adapter_config\.json and adapter_model\.safetensors"):
        load(kind, adapted)
    (adapted / CONFIG).write_text(whole)
    (adapted / WEIGHTS).rename(adapted / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"it has adapter_config\.json, adapter_model\.bin\); pickled"):
        load(kind, adapted)
    add_adapter(adapted, PLACES[kind], init_lora_weights="pissa_niter_4")
    with pytest.raises(ModelError, match="cannot be merged into these weights"):
        load(kind, adapted)


def test_an_adapter_that_does_not_fit_is_refused(load: Load, kind: str, adapted: Path) -> None:
    pytest.importorskip("peft")
    tensors = load_file(adapted / WEIGHTS)
    name = sorted(tensors)[0]
    save_file({n: v for n, v in tensors.items() if n != name}, adapted / WEIGHTS)
    with pytest.raises(ModelError, match=f"no tensor for '{name}'"):
        load(kind, adapted)
    save_file(tensors | {name.replace(".0.", ".7.", 1): tensors[name].clone()}, adapted / WEIGHTS)
    with pytest.raises(ModelError, match="no place for"):
        load(kind, adapted)
    save_file(tensors | {name: torch.zeros(RANK, 3)}, adapted / WEIGHTS)
    with pytest.raises(ModelError, match="cannot be applied to"):
        load(kind, adapted)
    add_adapter(adapted, PLACES[kind], target_modules=["nowhere"])
    with pytest.raises(ModelError, match=r"cannot be applied to.*nowhere"):
        load(kind, adapted)
    prompt = {"peft_type": "PROMPT_TUNING", "task_type": "FEATURE_EXTRACTION", "num_virtual_tokens": 2}
    (adapted / CONFIG).write_text(json.dumps(prompt))
    with pytest.raises(ModelError, match="is of type PROMPT_TUNING"):
        load(kind, adapted)


def test_a_joint_model_refuses_an_adapter(load: Load, tmp_path: Path) -> None:
    fresh("fashionbert", **BERT).save(tmp_path / "joint")
    add_adapter(tmp_path / "joint", PLACES["caption"])
    with pytest.raises(ModelError, match="which extractor 'fashionbert' does not apply"):
        load("fashionbert", tmp_path / "joint")


def test_a_joint_model_starts_from_adapted_weights(bert_folder: Path, tmp_path: Path) -> None:
    """Its record names the weights that it started from, the adapter included."""
    pytest.importorskip("peft")
    folder = add_adapter(shutil.copytree(bert_folder, tmp_path / "adapted"), PLACES["caption"])
    options = {**BERT, "max_tokens": 12}
    plain, adapted = (fresh("fashionbert", **options, text_model=str(f)) for f in (bert_folder, folder))
    assert plain.starts != adapted.starts
    assert any(
        not torch.equal(a, b) for a, b in zip(*(e.network.text.parameters() for e in (plain, adapted)), strict=True)
    )


@pytest.mark.parametrize("places", [["q_proj"], r"^(model\.language_model(?=\.).*\.(q_proj))$"])
def test_an_adapter_of_the_class_with_a_head_is_merged(load: Load, tmp_path: Path, places: Any) -> None:
    """Qwen3VLForConditionalGeneration holds the model as ``model``; names and patterns of its adapters begin with that."""
    pytest.importorskip("peft")
    base = save_qwen3vl(tmp_path / "base")
    adapted = add_adapter(shutil.copytree(base, tmp_path / "adapted"), ".q_proj", task_type="CAUSAL_LM")
    about = json.loads((adapted / CONFIG).read_text())
    (adapted / CONFIG).write_text(json.dumps({**about, "target_modules": places}))
    rows = load("mllm", adapted).encode_pairs([picture(1)], ["in red"])
    by_hand = load("mllm", merged_by_hand(adapted, tmp_path / "merged")).encode_pairs([picture(1)], ["in red"])
    np.testing.assert_allclose(rows, by_hand, atol=2e-6)
    assert (rows * load("mllm", base).encode_pairs([picture(1)], ["in red"])).sum() < 0.999
