from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache import Store, StoreCorruptError, StoreError
from cache.manifest import load_manifest
from manifests.identity import digest

SHARED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def signed(about: dict[str, Any]) -> str:
    about.pop("digest", None)
    return json.dumps({**about, "digest": digest(about)})


@SHARED
@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_no_changed_byte_changes_what_is_read(three_shards: Path, at: int, value: int) -> None:
    path = three_shards / "manifest.json"
    if not (three_shards / "kept").exists():
        (three_shards / "kept").write_bytes(path.read_bytes())
    data = bytearray((three_shards / "kept").read_bytes())
    path.write_bytes(bytes(data))
    expected = load_manifest(three_shards)
    data[at % len(data)] = value
    path.write_bytes(bytes(data))
    try:
        assert load_manifest(three_shards) == expected  # white space
    except StoreError as error:
        assert "manifest.json" in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@SHARED
@given(data=st.data())
def test_a_wrong_manifest_with_a_right_digest_is_refused_or_harmless(three_shards: Path, data: st.DataObject) -> None:
    path = three_shards / "manifest.json"
    if not (three_shards / "kept").exists():
        (three_shards / "kept").write_bytes(path.read_bytes())
    about = json.loads((three_shards / "kept").read_bytes())
    node, key = about, "tables"
    while isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 4)):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    node[key] = data.draw(JSON)
    try:
        path.write_text(signed(about))
    except UnicodeEncodeError:
        return
    try:
        store = Store.open(three_shards)
        for table, info in store.tables.items():
            assert store.load(table).shape == (info.rows, info.dim)
    except StoreError:
        pass


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, "NaN", '{"version": 1}', "\xff", "1" * 5000]
)
def test_what_is_no_manifest_at_all(three_shards: Path, text: str) -> None:
    (three_shards / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreCorruptError, match=r"manifest.json was edited or damaged"):
        Store.open(three_shards)


def edits() -> dict[str, Callable[[dict[str, Any]], Any]]:
    def shard(about: dict[str, Any], n: int = 0) -> dict[str, Any]:
        return about["tables"]["image"]["shards"][n]

    return {
        "climbs out": lambda a: shard(a).update(file="../image-00000.h5"),
        "absolute": lambda a: shard(a).update(file="/etc/passwd"),
        "other table": lambda a: shard(a).update(file="text-00000.h5"),
        "twice": lambda a: a["tables"]["image"]["shards"].insert(0, shard(a)),
        "rows": lambda a: shard(a).update(rows=299),
        "negative": lambda a: shard(a).update(features_at=-8),
        "beyond": lambda a: shard(a).update(keys_at=shard(a)["bytes"] - 1),
        "true": lambda a: shard(a).update(rows=True),
        "dtype": lambda a: a["tables"]["image"].update(dtype="object"),
        "table": lambda a: a["tables"].update(other=a["tables"]["image"]),
        "no shard": lambda a: a["tables"]["image"].update(shards=[], rows=0),
        "fields": lambda a: a["fields"].update(weights="other"),
        "execution": lambda a: a.update(execution=[1]),
        "version": lambda a: a.update(version=0),
        "format": lambda a: a.update(format="other"),
        "digest": lambda a: shard(a).update(sha256="x"),
    }


@pytest.mark.parametrize("name", edits())
def test_a_signed_manifest_must_still_make_sense(three_shards: Path, name: str) -> None:
    path = three_shards / "manifest.json"
    about = json.loads(path.read_text())
    edits()[name](about)
    path.write_text(signed(about))
    with pytest.raises(StoreCorruptError, match=r"manifest.json was edited or damaged"):
        Store.open(three_shards)
