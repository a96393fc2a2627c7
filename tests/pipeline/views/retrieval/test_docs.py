"""The examples of the documentation are real."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from manifests.load import load_spec
from pipeline.jobs.specs import check_components
from pipeline.training.dialogue import Dialogue

DOCS = Path(__file__).resolve().parents[4] / "docs"


def block(page: str, language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)[number]


def loaded(folder: Path, name: str, code: str) -> Any:
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_model_keeps_the_contract(tmp_path: Path) -> None:
    module = loaded(tmp_path, "decay", block("bring-your-own-model.md", "python"))
    model = module.Decay(module.Decay.Options(start=0.5), 6).eval()
    queries, lengths = torch.randn(3, 4, 6), torch.tensor([4, 4, 4])
    whole = model(queries, lengths)
    changed = model(torch.cat([queries[:, :2], torch.randn(3, 2, 6)], 1), lengths)
    assert torch.allclose(whole[:, :2], changed[:, :2])  # output n uses turns 1..n alone
    dialogue = Dialogue(model)
    for turn in range(4):
        assert torch.allclose(dialogue.say(queries[1, turn]), whole[1, turn], atol=1e-6)
    whole.sum().backward()
    assert model.raw.grad is not None and model.raw.grad.abs().sum() > 0


def test_the_example_extractor_keeps_the_contract(tmp_path: Path) -> None:
    module = loaded(tmp_path, "histogram", block("bring-your-own-model.md", "python", 1))
    extractor = module.Histogram(module.Options(), torch.device("cpu"))
    red, navy = (Image.new("RGB", (40, 30), module.COLORS[name]) for name in ("red", "navy"))
    images, texts = extractor.encode_images([red, navy]), extractor.encode_texts(["in red", "make it navy"])
    assert images.shape == texts.shape == (2, extractor.dim("image")) and images.dtype == extractor.dtype
    assert (images.astype(float) @ texts.astype(float).T).argmax(1).tolist() == [0, 1]
    fields = extractor.semantic()
    assert fields["extractor"] == "histogram" and fields["options"] == {"width": 60.0} and fields["weights"]
    assert extractor.card.licence and set(extractor.card.dims) == set(extractor.tables)


@pytest.mark.parametrize("number", [0, 1])
def test_the_example_specs_are_valid(tmp_path: Path, number: int) -> None:
    (tmp_path / "mine.toml").write_text(block("bring-your-own-dataset.md", "toml", number), encoding="utf-8")
    check_components(load_spec(str(tmp_path / "mine.toml")))
