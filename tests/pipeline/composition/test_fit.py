from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cache import Store
from manifests.errors import FashionNTMError, IncompleteError
from manifests.schema import Dataset
from pipeline.composition.checkpoint import load_composer, save_composer
from pipeline.composition.composers.gated import Gated, GatedOptions
from pipeline.composition.fit import FitOptions, contrastive_loss, fit_composer, single_turn_recall, triplets

FIT = FitOptions(epochs=25, batch_size=32, learning_rate=3e-3)


def fitted(store: Store, dataset: Dataset, fit: FitOptions = FIT) -> tuple[Gated, list[float]]:
    torch.manual_seed(0)
    composer = Gated(GatedOptions(dim=16, hidden=32, dropout=0.0), 24, 24)
    return composer, [m["loss"] for m in fit_composer(composer, store, dataset.split("train"), fit)]


def test_triplets_are_unique_and_point_at_the_right_rows(backbone: Store, dataset: Dataset) -> None:
    found = triplets(backbone, dataset.split("train"))
    wanted = {(t.reference, t.text, x) for s in dataset.split("train") for t, x in zip(s.turns, s.targets, strict=True)}
    assert len(found) == len(wanted) and found.left_out == 0
    assert set(found.category) == {"dress", "shirt"}


def test_fitting_learns_unseen_sessions_far_above_chance(backbone: Store, dataset: Dataset) -> None:
    composer, losses = fitted(backbone, dataset)
    assert losses[-1] < losses[0] / 2
    scores = single_turn_recall(composer, backbone, dataset, dataset.split("test"), ks=(1, 5))
    assert scores["R@1"] > 50  # chance is 1 in 30
    assert scores["R@5"] >= scores["R@1"]


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(backbone: Store, dataset: Dataset) -> None:
    short = FIT.model_copy(update={"epochs": 2})
    (a, _), (b, _) = fitted(backbone, dataset, short), fitted(backbone, dataset, short)
    (c, _) = fitted(backbone, dataset, short.model_copy(update={"seed": 1}))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_fitting_leaves_the_global_random_state_alone(backbone: Store, dataset: Dataset) -> None:
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    composer = Gated(GatedOptions(dim=8, hidden=8), 24, 24)
    state = torch.get_rng_state()
    list(fit_composer(composer, backbone, dataset.split("train"), FIT.model_copy(update={"epochs": 1})))
    assert torch.equal(state, torch.get_rng_state()) and before.numel() == 1


def test_the_same_image_twice_in_a_batch_is_no_negative() -> None:
    features = torch.nn.functional.normalize(torch.randn(3, 4), dim=-1)
    twice = features[[0, 1, 2, 0]]
    rows = torch.tensor([0, 1, 2, 0])
    logits = 10.0 * twice @ twice.T
    by_hand = []
    for i in range(4):
        negatives = [j for j in range(4) if j == i or rows[j] != rows[i]]
        by_hand.append(-torch.log_softmax(logits[i, negatives], -1)[negatives.index(i)])
    torch.testing.assert_close(contrastive_loss(twice, twice, rows, 10.0), torch.stack(by_hand).mean())


def test_no_triplets_is_an_incomplete_store(backbone: Store) -> None:
    with pytest.raises(IncompleteError, match="0 train triplets"):
        list(fit_composer(Gated(GatedOptions(), 24, 24), backbone, (), FIT))


def test_a_checkpoint_gives_the_same_features_again(tmp_path: Path, backbone: Store, dataset: Dataset) -> None:
    composer, _ = fitted(backbone, dataset, FIT.model_copy(update={"epochs": 1}))
    save_composer(tmp_path / "c", composer, {"note": "kept"})
    loaded, about = load_composer(tmp_path / "c")
    image, text = torch.randn(3, 24), torch.randn(3, 24)
    assert about["note"] == "kept" and about["name"] == "gated"
    with torch.no_grad():
        torch.testing.assert_close(loaded.query(image, text), composer.query(image, text), rtol=0, atol=0)


def test_a_missing_or_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match="run fit-composer"):
        load_composer(tmp_path / "none")
    save_composer(tmp_path / "c", Gated(GatedOptions(dim=4, hidden=4), 3, 3), {})
    weights = tmp_path / "c" / "composer.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(FashionNTMError, match=r"composer\.safetensors: damaged"):
        load_composer(tmp_path / "c")
    (tmp_path / "c" / "seal.json").unlink()  # as earlier versions left it
    with pytest.raises(FashionNTMError, match=r"sha256 .* is not the recorded"):
        load_composer(tmp_path / "c")
