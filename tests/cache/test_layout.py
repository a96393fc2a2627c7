from __future__ import annotations

from pathlib import Path

import pytest

from cache import StoreError, store_path
from cache.layout import canonical, check_table, is_temporary, shard_name, shard_number, temporary_for
from manifests.identity import digest


def test_the_path_holds_the_fingerprint() -> None:
    fields = {"weights": "abc", "size": (1, 2)}
    path = store_path(Path("stores"), "demo", "clip+gated", fields)
    assert path == Path("stores/demo") / f"clip+gated-{digest({'weights': 'abc', 'size': [1, 2]})[:12]}"
    assert path == store_path(Path("stores"), "demo", "clip+gated", {"size": [1, 2], "weights": "abc"})
    assert path != store_path(Path("stores"), "demo", "clip+gated", {"size": [1, 3], "weights": "abc"})


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", "a\\b", ".hidden", "a\0b", "x" * 101, "-flag", "a b", 3])
def test_a_name_cannot_climb_out_of_the_root(name: str) -> None:
    with pytest.raises(StoreError, match="folder name"):
        store_path(Path("stores"), name, "clip", {})
    with pytest.raises(StoreError, match="folder name"):
        store_path(Path("stores"), "demo", name, {})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), b"x", "\ud800"])
def test_fields_without_a_json_form_are_refused(value: object) -> None:
    with pytest.raises(StoreError, match="plain JSON"):
        canonical({"field": value})


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(StoreError, match="did you mean 'image'"):
        check_table("images")


def test_shard_names_go_both_ways_and_nothing_else_is_one() -> None:
    assert shard_number(shard_name("query", 7)) == ("query", 7)
    assert shard_number(shard_name("text", 123456)) == ("text", 123456)
    for name in (
        "../image-00000.h5",
        "image-00000.h5.tmp",
        "image-0.h5",
        "image-000001.h5",
        "other-00000.h5",
        "image-00000.h5\n",
    ):
        with pytest.raises(ValueError, match="not the name"):
            shard_number(name)


def test_temporary_names_are_told_apart() -> None:
    assert is_temporary(temporary_for(Path("x/image-00000.h5")).name)
    assert not is_temporary("image-00000.h5") and not is_temporary(".writer.lock")
