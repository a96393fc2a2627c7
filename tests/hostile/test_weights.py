"""Weights that are not of their configuration: which tensor, its shape in the file, the expected one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from manifests.errors import FashionNTMError
from manifests.shapes import misfit
from pipeline.composition.checkpoint import load_composer, save_composer
from pipeline.composition.composers import composers
from pipeline.extraction import hub
from tests.pipeline.extraction.conftest import save_bert


def test_names_and_shapes_are_named() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4))
    weights = {**module.state_dict(), "1.bias": torch.zeros(9), "0.bias": torch.zeros(8), "2.x": torch.zeros(1)}
    del weights["0.weight"]
    assert misfit(module.state_dict(), module.state_dict()) == ""
    assert misfit(module.state_dict(), weights) == (
        "tensor '0.bias' is [8] in the file and [3] by the configuration, and 1 more tensors do not fit; "
        "tensor '0.weight' is absent; tensor '2.x' is unknown"
    )


def test_a_model_folder_of_another_config(tmp_path: Path) -> None:
    save_bert(tmp_path)
    config = tmp_path / "config.json"
    about = json.loads(config.read_text())
    config.write_text(json.dumps(about | {"intermediate_size": 2 * about["intermediate_size"]}))
    with pytest.raises(hub.ModelError) as error:
        hub.load_model(hub.locate(str(tmp_path)), torch.float32, torch.device("cpu"), unused=("pooler.",))
    size = about["intermediate_size"]
    text = str(error.value)
    assert "its weights are not of its config.json: tensor '" in text and "\n" not in text
    assert f"is [{size}] in the file and [{2 * size}] by the configuration" in text


def test_a_composer_of_other_sizes(tmp_path: Path) -> None:
    kind = composers.get("gated")
    save_composer(tmp_path / "c", kind(kind.Options(), 8, 8), {})
    weights, sidecar = tmp_path / "c/composer.safetensors", tmp_path / "c/composer.json"
    about = json.loads(sidecar.read_text()) | {"text_dim": 16}
    sidecar.write_text(json.dumps(about))
    (tmp_path / "c/seal.json").unlink()
    with pytest.raises(FashionNTMError, match=r"in the file and \[.*\] by the configuration"):
        load_composer(tmp_path / "c")
    save_file({"x": torch.zeros(1)}, weights)
    assert list(load_file(weights)) == ["x"]
    with pytest.raises(FashionNTMError, match="is not the recorded"):
        load_composer(tmp_path / "c")
