"""One contract for every composer, found by name; then what each promises on its own."""

from __future__ import annotations

import pytest
import torch

from manifests.errors import FashionNTMError
from pipeline.composition.composers import composers
from pipeline.composition.composers.fusion import Fusion, FusionOptions


@pytest.fixture(params=composers.names())
def composer(request: pytest.FixtureRequest):
    kind = composers.get(request.param)
    torch.manual_seed(0)
    return kind(kind.Options(), 12, 12).eval()


def test_features_have_the_declared_size_unit_norm_and_no_nan(composer) -> None:
    image, text = torch.randn(5, 12), torch.randn(5, 12)
    for features in (composer.query(image, text), composer.target(image)):
        assert features.shape == (5, composer.dim)
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(5))


def test_a_row_does_not_depend_on_its_batch(composer) -> None:
    image, text = torch.randn(6, 12), torch.randn(6, 12)
    whole = composer.query(image, text)
    alone = torch.cat([composer.query(image[n : n + 1], text[n : n + 1]) for n in range(6)])
    torch.testing.assert_close(whole, alone)


def test_both_inputs_matter_to_the_query(composer) -> None:
    image, text = torch.randn(2, 12), torch.randn(2, 12)
    base = composer.query(image, text)
    assert not torch.allclose(base, composer.query(image.flip(0), text))
    assert not torch.allclose(base, composer.query(image, text.flip(0)))


def test_a_trainable_composer_has_parameters_and_the_others_none(composer) -> None:
    assert bool(list(composer.parameters())) == composer.trainable


def test_fusion_is_the_weighted_sum_of_unit_vectors() -> None:
    image, text = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    query = Fusion(FusionOptions(alpha=0.6), 2, 2).query(image, text)
    expected = torch.tensor([[0.4, 0.6]])
    torch.testing.assert_close(query, expected / expected.norm())


def test_fusion_refuses_embeddings_of_two_sizes_and_names_the_way_out() -> None:
    with pytest.raises(FashionNTMError, match=r"2 values and text rows 3.*gated"):
        Fusion(FusionOptions(), 2, 3)


def test_the_gated_composer_starts_as_the_even_fusion_of_the_pretrained_embeddings() -> None:
    image, text = torch.randn(4, 12), torch.randn(4, 12)
    start = composers.get("gated")(composers.get("gated").Options(), 12, 12).eval()
    torch.testing.assert_close(start.query(image, text), Fusion(FusionOptions(alpha=0.5), 12, 12).query(image, text))


def test_the_gated_composer_takes_embeddings_of_two_sizes() -> None:
    kind = composers.get("gated")
    assert kind(kind.Options(dim=7), 12, 5).eval().query(torch.randn(3, 12), torch.randn(3, 5)).shape == (3, 7)
