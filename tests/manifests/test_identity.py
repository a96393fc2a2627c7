from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import identity


def test_a_digest_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert identity.digest({"a": 1, "b": [2, 3]}) == identity.digest({"b": [2, 3], "a": 1})
    assert identity.digest({"a": 1}) != identity.digest({"a": 1.5})
    assert identity.digest([1, 2]) != identity.digest([2, 1])


def test_a_digest_refuses_what_has_no_canonical_form() -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        identity.digest(float("nan"))


def test_the_same_bytes_of_another_kind_have_another_key() -> None:
    keys = {identity.image_key(b"red"), identity.caption_key("red"), identity.text_key("red")}
    assert len(keys) == 3 and all(len(k) == identity.KEY_BYTES for k in keys)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_keys_differ_exactly_when_the_bytes_differ(a: bytes, b: bytes) -> None:
    assert (identity.image_key(a) == identity.image_key(b)) == (a == b)


def test_a_pair_key_depends_on_both_parts_and_their_order() -> None:
    a, b = identity.image_key(b"a"), identity.text_key("b")
    assert len({identity.pair_key(a, b), identity.pair_key(b, a), identity.pair_key(a, a)}) == 3


def test_stacked_keys_keep_order_and_may_be_empty() -> None:
    keys = [identity.text_key(t) for t in "abc"]
    stacked = identity.stack_keys(keys)
    assert stacked.shape == (3, 16) and stacked.dtype == np.uint8
    assert [row.tobytes() for row in stacked] == keys
    assert identity.stack_keys([]).shape == (0, 16)


def test_changed_fields_names_nested_fields_old_to_new() -> None:
    old = {"dtype": "float32", "model": {"weights": "aa", "pooling": "mean"}}
    new = {"dtype": "float16", "model": {"weights": "aa", "pooling": "cls"}, "extra": 1}
    assert identity.changed_fields(old, new) == [
        'dtype: "float32" -> "float16"',
        "extra: null -> 1",
        'model.pooling: "mean" -> "cls"',
    ]


def test_file_digest_is_that_of_the_bytes(tmp_path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert identity.file_digest(tmp_path / "f").startswith("ba7816bf")
