"""The loss against the paper's formula, spelled out."""

from __future__ import annotations

import math

import numpy as np
import torch

from pipeline.training.losses import turnwise_cross_entropy

B, T, D = 5, 3, 4


def spelled_out(predicted: np.ndarray, targets: np.ndarray, present: np.ndarray, scale: float) -> float:
    """1/N sum_n 1/B sum_i -log(e^k(i, i) / sum_j e^k(i, j)) over the sessions present at turn n."""
    turns = []
    for n in range(predicted.shape[1]):
        members = np.flatnonzero(present[:, n])
        if len(members) < 2:
            continue
        total = 0.0
        for i in members:
            scores = []
            for j in members:
                x, y = predicted[i, n], targets[j, n]
                scores.append(math.exp(scale * float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y))))
            total -= math.log(scores[list(members).index(i)] / sum(scores))
        turns.append(total / len(members))
    return sum(turns) / len(turns)


def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(B, T, D, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore


def test_equals_the_papers_formula() -> None:
    predicted, targets = example()
    everywhere = np.ones((B, T), dtype=bool)
    for scale in (1.0, 10.0):
        found = turnwise_cross_entropy(predicted, targets, scale=scale)
        assert math.isclose(float(found), spelled_out(predicted.numpy(), targets.numpy(), everywhere, scale))


def test_masked_turns_are_neither_queries_nor_negatives() -> None:
    predicted, targets = example()
    lengths = torch.tensor([1, 3, 2, 2, 1])  # turn 3 has one session: no loss there
    present = np.arange(T) < lengths.numpy()[:, None]
    found = turnwise_cross_entropy(predicted, targets, lengths)
    assert math.isclose(float(found), spelled_out(predicted.numpy(), targets.numpy(), present, 1.0))
    changed = predicted.clone()
    changed[0, 1:] = 7.0
    assert turnwise_cross_entropy(changed, targets, lengths) == found


def test_masking_leaves_finite_gradients_and_none_on_padding() -> None:
    predicted, targets = example()
    predicted.requires_grad_()
    lengths = torch.tensor([1, 3, 2, 2, 1])
    turnwise_cross_entropy(predicted, targets, lengths).backward()
    assert torch.isfinite(predicted.grad).all()
    padding = torch.arange(T) >= lengths[:, None]
    assert not predicted.grad[padding].any()
    assert not predicted.grad[1, 2].any()  # alone at turn 3


def test_full_lengths_mask_nothing() -> None:
    predicted, targets = example()
    masked = turnwise_cross_entropy(predicted, targets, torch.full((B,), T))
    assert torch.allclose(masked, turnwise_cross_entropy(predicted, targets), rtol=1e-14)


def test_zero_features_have_a_loss_and_a_finite_gradient() -> None:
    predicted = torch.zeros(B, T, D, requires_grad=True)
    loss = turnwise_cross_entropy(predicted, torch.zeros(B, T, D))
    loss.backward()
    assert math.isclose(loss.item(), math.log(B), rel_tol=1e-6) and torch.isfinite(predicted.grad).all()
