"""The public style computes what the reference computes, from the same weights."""

from __future__ import annotations

import pytest
import torch

from pipeline.bench._public_style import PublicStyleCascade, from_reference_weights
from pipeline.training.errors import TrainingError
from pipeline.training.models import build_model
from pipeline.training.models.cm_ntm import CMNTM

N, M, K, D, B, T = 4, 5, 3, 6, 7, 3  # all sizes differ


def generic(stages: int, **options: object) -> CMNTM:
    """Random memories and head positions: at the initial ones a comparison of the heads would pass with any formula."""
    model = build_model("cm_ntm", {"stages": stages, "slots": N, "width": M, "hidden": K} | options, D).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(0.7 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return model.train()


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    queries = torch.randn(B, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return queries, torch.full((B,), T)


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"slots": 1}, {"slots": 2}, {"width": None, "init": "symmetry-breaking"}])
def test_outputs_and_gradients_equal_the_reference(stages: int, options: dict[str, object]) -> None:
    reference = generic(stages, **options)
    public, (queries, lengths) = PublicStyleCascade.from_reference(reference), a_batch()
    found, expected = public(queries, lengths), reference(queries, lengths)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    mix = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (found * mix).sum().backward()
    (expected * mix).sum().backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in reference.named_parameters()}
    gradients |= {n: torch.zeros_like(b) for n, b in reference.named_buffers() if n not in gradients}
    mapped = from_reference_weights(gradients, reference.options, D)
    learned = [(n, p) for n, p in public.named_parameters() if p.requires_grad]
    assert sum(p.numel() for _, p in learned) == sum(p.numel() for p in reference.parameters())
    for name, parameter in learned:
        torch.testing.assert_close(parameter.grad, mapped[name], rtol=0, atol=1e-9)


def test_equal_at_the_initial_values_too() -> None:
    reference = build_model("cm_ntm", {"stages": 3, "hidden": K}, D).double().train()
    queries, lengths = a_batch()
    public = PublicStyleCascade.from_reference(reference)
    torch.testing.assert_close(public(queries, lengths), reference(queries, lengths), rtol=0, atol=1e-10)
    assert torch.equal(public(queries, lengths), public(queries, lengths))  # a forward leaves no session behind


def test_every_weight_is_mapped() -> None:
    public = PublicStyleCascade.from_reference(generic(3))
    missing = set(public.state_dict()) - set(from_reference_weights(generic(3).state_dict(), generic(3).options, D))
    assert {name.rsplit(".", 1)[-1] for name in missing} == {"running_mean", "running_var", "num_batches_tracked"}


def test_options_outside_the_public_model_are_refused() -> None:
    for options in ({"dropout": 0.1}, {"residual": True}):
        with pytest.raises(TrainingError, match="neither dropout nor residual"):
            PublicStyleCascade.from_reference(generic(2, **options))
