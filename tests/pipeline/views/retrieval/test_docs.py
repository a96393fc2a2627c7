"""The examples of the documentation are real."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch

from manifests.load import load_spec
from pipeline.jobs.specs import check_components
from pipeline.training.dialogue import Dialogue

DOCS = Path(__file__).resolve().parents[4] / "docs"


def block(page: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)
    assert found
    return found.group(1)


def test_the_example_model_keeps_the_contract(tmp_path: Path) -> None:
    file = tmp_path / "decay.py"
    file.write_text(block("bring-your-own-model.md", "python"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("decay", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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


def test_the_example_spec_is_valid(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(block("bring-your-own-dataset.md", "toml"), encoding="utf-8")
    check_components(load_spec(str(tmp_path / "mine.toml")))
