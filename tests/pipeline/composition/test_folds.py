"""Cross-fitting: no row is made by a head that saw it, and everything else stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cache import Store
from manifests.errors import ManifestError
from manifests.identity import pair_key, text_key
from manifests.schema import Component, Dataset, RunSpec, Session, Turn
from pipeline.composition.compose import compose
from pipeline.composition.crossfit import (
    CrossFitted,
    assign_folds,
    fit_folds,
    load_folds,
    new_composer,
    share_target,
)
from pipeline.composition.fit import fit_composer
from pipeline.composition.request import ComposerRequest, composer_request
from tests.worlds import world, write_backbone

CATALOGUE = {name: name.encode().ljust(16, b".") for name in "abcdefgh"}


def session(number: int, *steps: tuple[str, str], target: str) -> Session:
    turns = tuple(Turn(reference=image, captions=(text,)) for image, text in steps)
    return Session(id=str(number), category="dress", split="train", turns=turns, target=target)


def spec(**composer: object) -> RunSpec:
    return RunSpec(
        name="s", dataset=Component(name="jsonl"), extractor=Component(name="caption"), composer=Component(**composer)
    )


def request(**fit: object) -> ComposerRequest:
    found = composer_request(spec(name="gated", dim=8, hidden=16, folds=3, fit={"epochs": 2, "batch_size": 32, **fit}))
    assert found is not None
    return found


def test_sessions_that_share_a_row_or_a_pair_are_in_one_fold() -> None:
    sessions = (
        session(0, ("a", "red"), target="b"),
        session(1, ("a", "red"), target="c"),  # the row of 0
        session(2, ("a", "blue"), ("b", "long"), target="d"),  # the pair (a, b) of 0
        session(3, ("e", "red"), target="f"),
        session(4, ("g", "red"), target="h"),
        session(5, ("h", "short"), target="a"),
    )
    folds = assign_folds(sessions, CATALOGUE, 3)
    assert len({folds.sessions[n] for n in (0, 1, 2)}) == 1 and set(folds.sessions) == {0, 1, 2}
    assert folds.groups == 4 and folds.largest == 3 and sorted(folds.sizes()) == [1, 2, 3]
    for s, fold in zip(sessions, folds.sessions, strict=True):
        for image, text, _ in s.queries():
            assert folds.rows[pair_key(CATALOGUE[image], text_key(text))] == fold
    assert assign_folds(sessions[::-1], CATALOGUE, 3).sessions == folds.sessions[::-1]
    assert {assign_folds(sessions, CATALOGUE, 3, seed).sessions for seed in range(8)} != {folds.sessions}


def test_two_ids_of_one_image_are_one_row() -> None:
    same = {**CATALOGUE, "e": CATALOGUE["a"]}
    sessions = (session(0, ("a", "red"), target="b"), session(1, ("e", "red"), target="c"))
    assert assign_folds((*sessions, session(2, ("g", "x"), target="h")), same, 2).groups == 2
    with pytest.raises(ManifestError, match="make 1 groups without a shared pair, for 2 folds"):
        assign_folds(sessions, same, 2)


def test_a_spec_that_cannot_be_cross_fitted_is_refused(backbone: Store) -> None:
    for composer, what in (
        ({"name": "gated", "folds": 1}, "at least two folds"),
        ({"name": "fusion", "folds": 4}, "composer 'fusion' is not fitted"),
        ({"name": "gated", "folds": 4, "weights": "somewhere"}, "fitted weights are given"),
        ({"name": "gated", "folds": "many"}, "composer.folds: found 'many'"),
    ):
        with pytest.raises(ManifestError, match=what):
            composer_request(spec(**composer))
    plain, crossed = composer_request(spec(name="gated")), composer_request(spec(name="gated", folds=3))
    assert plain and crossed and plain.folds == 0
    data = world()
    fit = data.split("train")
    assert plain.key(backbone, data, fit, ()) != crossed.key(backbone, data, fit, ())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Store, CrossFitted, dict, Path]:
    dataset = world()
    folder = tmp_path_factory.mktemp("crossed")
    backbone = write_backbone(folder / "backbone", dataset)
    sessions = dataset.split("train")
    whole = new_composer(request(), backbone).eval()
    record = fit_folds(folder / "c", whole, request(), sessions, dataset, backbone)
    return dataset, backbone, load_folds(folder / "c", request(), sessions, backbone), record, folder


def test_each_row_is_made_by_the_head_that_has_not_seen_it(fitted: tuple, tmp_path: Path) -> None:
    dataset, backbone, crossed, record, _ = fitted
    assert record["count"] == 3 and sum(record["sessions"]) == len(dataset.split("train"))
    assert {"R@5", "R@10", "R@50"} == set(record["out_of_fold"])
    whole = new_composer(request(), backbone).eval()
    made = compose(backbone, dataset, whole, tmp_path, "w", crossed=crossed)
    plain = compose(backbone, dataset, whole, tmp_path, "w")
    assert made.path != plain.path and made.crossed == len(crossed.folds.rows) > 0 and plain.crossed == 0
    store, other, catalogue = Store.open(made.path), Store.open(plain.path), backbone.catalogue()
    np.testing.assert_array_equal(store.load("target"), other.load("target"))
    seen = {-1: 0, 0: 0, 1: 0, 2: 0}
    for image, text in dict.fromkeys(dataset.queries()):
        key = pair_key(catalogue[image], text_key(text))
        fold = crossed.head_of(key)
        head = whole if fold < 0 else crossed.heads[fold]
        with torch.no_grad():
            inputs = [
                torch.from_numpy(backbone.gather(t, backbone.find(t, np.frombuffer(k, np.uint8)[None])))
                for t, k in (("image", catalogue[image]), ("text", text_key(text)))
            ]
            expected = head.query(*inputs).numpy()
        np.testing.assert_allclose(
            store.gather("query", store.find("query", np.frombuffer(key, np.uint8)[None])), expected, atol=2e-6
        )
        seen[fold] += 1
    assert min(seen.values()) > 0


def test_a_head_is_the_one_fitted_on_the_other_folds_alone(fitted: tuple) -> None:
    dataset, backbone, crossed, _, _ = fitted
    sessions, catalogue = dataset.split("train"), backbone.catalogue()
    for fold, head in enumerate(crossed.heads):
        others = tuple(s for s, f in zip(sessions, crossed.folds.sessions, strict=True) if f != fold)
        rows = {pair_key(catalogue[image], text_key(text)) for s in others for image, text, _ in s.queries()}
        assert rows and not [key for key, f in crossed.folds.rows.items() if f == fold and key in rows]
        alone = new_composer(request(), backbone)
        share_target(alone, new_composer(request(), backbone))
        list(fit_composer(alone, backbone, others, request().fit))
        for mine, other in zip(alone.parameters(), head.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_all_heads_measure_in_one_target_space(fitted: tuple) -> None:
    _, backbone, crossed, _, _ = fitted
    whole = new_composer(request(), backbone).eval()
    image = torch.randn(5, 24)
    with torch.no_grad():
        for head in crossed.heads:
            torch.testing.assert_close(head.target(image), whole.target(image), rtol=0, atol=0)
    text = torch.randn(5, 24)
    answers = torch.stack([head.query(image, text) for head in crossed.heads])
    assert (answers[0] - answers[1]).abs().max() > 1e-3
