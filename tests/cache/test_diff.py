from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cache import Store, StoreWriter
from cache.diff import ABSENT, FieldChange, diff, field_changes

FIELDS = {"weights": "abc", "dtype": "float16", "preprocessing": {"size": 224, "crop": "centre"}}


def test_fields_by_dotted_name_with_absent_and_null_told_apart() -> None:
    old = {"a": {"b": 1, "c": None}, "d": True, "same": [1, 2]}
    new = {"a": {"b": 2}, "d": 1, "same": [1, 2], "e": None}
    assert field_changes(old, new) == [
        FieldChange("a.b", 1, 2),
        FieldChange("a.c", None, ABSENT),
        FieldChange("d", True, 1),
        FieldChange("e", ABSENT, None),
    ]
    assert str(FieldChange("a.b", "x", 2)) == 'a.b: "x" -> 2'


def test_order_shards_and_execution_make_no_difference(
    three_shards: Path, tmp_path: Path, writer: Callable, rows: Callable
) -> None:
    other = tmp_path / "other"
    with writer(other, execution={"batch_size": 99}) as w:
        w.commit("text", *rows(1000, 40, 6, "float32"))
        for start in (400, 0, 200):
            w.commit("image", *rows(start, 200))
        w.bind({f"image {n}": rows(n, 1)[0].tobytes() for n in range(20)})
    found = diff(Store.open(three_shards), Store.open(other))
    assert found.same and [(t.table, t.equal) for t in found.tables] == [("image", 600), ("text", 40)]
    assert json.loads(json.dumps(found.as_dict()))["same"] is True and "are the same" in found.text()


def test_every_kind_of_difference_is_counted_and_named(three_shards: Path, tmp_path: Path, rows: Callable) -> None:
    other, (keys, features) = tmp_path / "other", rows(5, 600)
    features[3, 2] += np.float16(0.5)  # image 8
    features[100, 1] += np.float16(0.25)
    changed = {**FIELDS, "preprocessing": {"size": 256, "crop": "centre"}}
    with StoreWriter(other, dataset="demo", extractor="clip", fields=changed) as w:
        w.commit("image", keys, features)
        w.commit("query", *rows(2000, 2))
    found = diff(Store.open(three_shards), Store.open(other), largest=1)
    assert [str(f) for f in found.fields] == ["preprocessing.size: 224 -> 256"]
    image, text, query = found.tables
    assert (image.only_a, image.only_b, image.equal, image.differing) == (5, 5, 593, 2)
    (worst,) = image.largest
    assert worst.key == keys[3].tobytes().hex() and worst.images == ("image 8",)
    expected = float(features[3, 2]) - float(rows(8, 1)[1][0, 2])
    assert worst.max_abs == expected and worst.cosine < 1
    assert "image 0" in image.examples_a and (text.only_a, query.only_b) == (40, 2) and not found.same
    assert "only in A: image" in found.text() and "the stores differ" in found.text()


def test_other_widths_and_dtypes_are_said(three_shards: Path, tmp_path: Path, rows: Callable) -> None:
    keys, features = rows(0, 10)
    for name, other in (("wide", np.tile(features, 2)), ("single", features.astype(np.float32))):
        with StoreWriter(tmp_path / name, dataset="demo", extractor="clip", fields=FIELDS) as w:
            w.commit("image", keys, other)
        image = diff(Store.open(three_shards), Store.open(tmp_path / name)).tables[0]
        assert "A holds float16 [n, 8]" in image.note and image.differing == (10 if name == "wide" else 0)
