"""The copy task: each model is clipped alone, bits are counted, and a short version is learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.bench import copy
from pipeline.training.cascade.stacked import FastCascade
from pipeline.training.models import build_model
from pipeline.training.models.cm_ntm import CMNTM

OPTIONS = {"slots": 5, "width": 4, "hidden": 3}


def generic(seed: int) -> CMNTM:
    """Double precision, every weight and memory far from its initial value."""
    model = build_model("v_ntm", OPTIONS, copy.WIDTH_IN, seed).double().train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(0.6 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return model


def test_each_model_is_clipped_by_its_own_norm() -> None:
    together = FastCascade([generic(seed) for seed in range(2)])
    for parameter in together.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        if parameter.grad is not None:
            parameter.grad[1] *= 1e-6
    before = [p.grad.clone() for p in together.parameters() if p.grad is not None]
    copy.clip_each(together, 0.5)
    after = [p.grad for p in together.parameters() if p.grad is not None]
    norms = torch.stack([g.flatten(1).square().sum(1) for g in after]).sum(0).sqrt()
    assert norms[0] == pytest.approx(0.5) and all(torch.equal(a[1], b[1]) for a, b in zip(after, before, strict=True))


def test_a_sequence_is_shown_marked_and_asked_for() -> None:
    inputs, bits = copy.sequences(torch.Generator().manual_seed(0), batch=3, length=4)
    assert inputs.shape == (3, 9, 9) and bits.shape == (3, 4, 8) and set(bits.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(inputs[:, :4, :8], bits) and not inputs[:, 5:].any() and not inputs[:, :4, 8].any()
    assert (inputs[:, 4, 8] == 1).all() and not inputs[:, 4, :8].any()


def test_answers_come_from_after_the_mark_and_are_counted() -> None:
    trainer = copy.Trainer([0, 1], OPTIONS, 2, (1e-2, 1e-3), 10.0)
    inputs, bits = trainer.sequences(3, 2)
    assert inputs.shape == (2, 2, 7, 9) and not torch.equal(bits[0], bits[1])
    logits = copy.answers(trainer.models, inputs)
    torch.testing.assert_close(logits, trainer.models(inputs)[:, :, 4:, :8])
    right = (bits - 0.5) * 10
    assert copy.wrong_bits(right, bits).tolist() == [0, 0]
    right[1, 0] *= -1  # one of two sequences all wrong
    assert copy.wrong_bits(right, bits).tolist() == [0, 12]
    wrong, loss = trainer.step(3)
    assert wrong.shape == loss.shape == (2,) and 0.5 * 24 < loss.min() < 2 * 24  # an untrained model knows no bit


@pytest.mark.slow
def test_figures_table_and_picture(tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    result = copy.run(seeds=(0, 3), iterations=60, slots=3, hidden=4, longest=2, batch=2, plot=str(picture))
    json.dumps(result, allow_nan=False)
    assert [point["iteration"] for point in result["curve"]] == [50, 60] and result["seeds"] == [0, 3]
    text = copy.render(result)
    assert "seed 3: not below 0.1 after 60 iterations" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = copy.run(seeds=(3,), iterations=60, slots=3, hidden=4, longest=2, batch=2)
    assert again["curve"][0]["wrong_bits"][0] == pytest.approx(result["curve"][0]["wrong_bits"][1], abs=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_short_sequences_are_being_learned() -> None:
    """Lengths 1 to 5 in 16 slots: guessing gets 12 bits wrong on average; here 4.8 after 800 iterations and 2.7 after 1,600."""
    result = copy.run(seeds=(0,), iterations=900, slots=16, longest=5)
    assert min(result["curve"][0]["wrong_bits"]) > 6
    assert max(result["curve"][-1]["wrong_bits"]) < 6
