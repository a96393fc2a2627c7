"""One contract for every composer, found by name; then what each promises on its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from manifests.errors import FashionNTMError
from pipeline.composition.checkpoint import load_composer
from pipeline.composition.composers import composers
from pipeline.composition.composers.combiner import Combiner, CombinerOptions
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


def test_a_narrower_gated_composer_starts_in_one_space_that_keeps_most_of_the_cosines() -> None:
    torch.manual_seed(0)
    kind = composers.get("gated")
    image, text = F.normalize(torch.randn(50, 64), dim=-1), F.normalize(torch.randn(50, 64), dim=-1)
    start = kind(kind.Options(dim=48), 64, 64).eval()
    found = start.target(image) @ start.query(image, text).T
    full = kind(kind.Options(), 64, 64).eval()
    wanted = full.target(image) @ full.query(image, text).T
    assert torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1] > 0.8
    assert torch.equal(start.project_image.weight, start.project_text.weight)


def test_the_gated_composer_takes_embeddings_of_two_sizes() -> None:
    kind = composers.get("gated")
    assert kind(kind.Options(dim=7), 12, 5).eval().query(torch.randn(3, 12), torch.randn(3, 5)).shape == (3, 7)


def test_fusion_can_mix_the_embeddings_as_they_are() -> None:
    """WeiMoCIR's public code: a longer embedding weighs more."""
    image, text = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    query = Fusion(FusionOptions(alpha=0.8, raw=True), 2, 2).query(image, text)
    expected = torch.tensor([[0.2 * 3, 0.8 * 5]])
    torch.testing.assert_close(query, expected / expected.norm())


NAMES = {  # of the state dict that CLIP4CIR publishes, with its default sizes for 640-d embeddings (RN50x4)
    "text_projection_layer.weight": (2560, 640),
    "text_projection_layer.bias": (2560,),
    "image_projection_layer.weight": (2560, 640),
    "image_projection_layer.bias": (2560,),
    "combiner_layer.weight": (5120, 5120),
    "combiner_layer.bias": (5120,),
    "output_layer.weight": (640, 5120),
    "output_layer.bias": (640,),
    "dynamic_scalar.0.weight": (5120, 5120),
    "dynamic_scalar.0.bias": (5120,),
    "dynamic_scalar.3.weight": (1, 5120),
    "dynamic_scalar.3.bias": (1,),
}


def test_the_combiner_has_the_published_names_and_sizes() -> None:
    with torch.device("meta"):
        made = Combiner(CombinerOptions(), 640, 640)
    assert {name: tuple(p.shape) for name, p in made.state_dict().items()} == NAMES


def test_a_published_combiner_is_read_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(3)
    made = Combiner(CombinerOptions(projection=24, hidden=48), 12, 12).eval()
    torch.save({"epoch": 7, "Combiner": made.state_dict()}, tmp_path / "combiner.pt")
    loaded, about = load_composer(tmp_path / "combiner.pt")
    image, text = torch.randn(5, 12), torch.randn(5, 12)
    torch.testing.assert_close(loaded.query(image, text), made.query(image, text), rtol=0, atol=0)
    assert about["options"] == {"projection": 24, "hidden": 48, "dropout": 0.5} and len(about["weights"]) == 64
    words, pixels = (
        layer(x).relu() for layer, x in ((made.text_projection_layer, text), (made.image_projection_layer, image))
    )
    both = torch.cat([words, pixels], -1)
    s = made.dynamic_scalar(both)
    expected = made.output_layer(made.combiner_layer(both).relu()) + s * text + (1 - s) * image
    torch.testing.assert_close(loaded.query(image, text), torch.nn.functional.normalize(expected, dim=-1))


def test_any_other_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save({"CLIP": {}}, tmp_path / "clip.pt")
    (tmp_path / "evil.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for name in ("clip.pt", "evil.pt"):
        with pytest.raises(FashionNTMError, match="is no published combiner"):
            load_composer(tmp_path / name)
