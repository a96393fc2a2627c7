from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cache import Store
from manifests.identity import caption_key, pair_key, stack_keys, text_key
from manifests.schema import Dataset
from pipeline.composition.compose import compose
from pipeline.composition.composers.fusion import Fusion, FusionOptions
from tests.worlds import features, write_backbone


def fusion(alpha: float = 0.5) -> Fusion:
    return Fusion(FusionOptions(alpha=alpha), 24, 24).eval()


def test_every_query_and_target_is_composed_from_its_own_rows(
    tmp_path: Path, backbone: Store, dataset: Dataset
) -> None:
    report = compose(backbone, dataset, fusion(), tmp_path / "stores")
    store = Store.open(report.path)
    images, texts = features(dataset)
    for reference, text in list(dataset.queries())[::7]:
        key = pair_key(caption_key(reference), text_key(text))
        row = store.find("query", stack_keys([key]))
        as_float = [torch.from_numpy(v[None].astype(np.float32)) for v in (images[reference], texts[text])]
        np.testing.assert_allclose(store.gather("query", row), fusion().query(*as_float).numpy(), atol=1e-6)
    assert store.tables["target"].rows == len(dataset.images)
    assert store.catalogue() == backbone.catalogue()


def test_queries_are_deduplicated_and_counted(tmp_path: Path, backbone: Store, dataset: Dataset) -> None:
    report = compose(backbone, dataset, fusion(), tmp_path / "stores")
    assert report.written["query"] == len(set(dataset.queries())) < report.requested["query"]


def test_a_second_call_writes_nothing(tmp_path: Path, backbone: Store, dataset: Dataset) -> None:
    first = compose(backbone, dataset, fusion(), tmp_path / "stores")
    again = compose(backbone, dataset, fusion(), tmp_path / "stores")
    assert again.path == first.path
    assert again.written == {"target": 0, "query": 0} and again.reused == first.written


def test_another_alpha_or_other_weights_make_another_store(tmp_path: Path, backbone: Store, dataset: Dataset) -> None:
    paths = {
        compose(backbone, dataset, fusion(alpha), tmp_path / "stores", weights).path
        for alpha, weights in ((0.5, None), (0.6, None), (0.5, "w1"), (0.5, "w2"))
    }
    assert len(paths) == 4


def test_the_shard_size_changes_no_row(tmp_path: Path, backbone: Store, dataset: Dataset) -> None:
    whole = Store.open(compose(backbone, dataset, fusion(), tmp_path / "a").path)
    parts = Store.open(compose(backbone, dataset, fusion(), tmp_path / "b", shard_rows=7).path)
    assert whole.fingerprint == parts.fingerprint
    np.testing.assert_array_equal(whole.keys("query"), parts.keys("query"))
    np.testing.assert_allclose(whole.load("query"), parts.load("query"), atol=1e-6)


def test_a_failed_image_fails_its_queries_and_nothing_else(tmp_path: Path, dataset: Dataset) -> None:
    lost = dataset.sessions[0].turns[0].reference
    backbone = write_backbone(tmp_path / "stores" / "world" / "lossy", dataset, leave_out=(lost,))
    report = compose(backbone, dataset, fusion(), tmp_path / "stores")
    store = Store.open(report.path)
    assert {f.item for f in store.failures() if f.table == "target"} == {lost}
    assert store.tables["target"].rows == len(dataset.images) - 1
    asked = {q for q in dataset.queries() if q[0] != lost}
    assert store.tables["query"].rows == len(asked)
