from __future__ import annotations

import json
from pathlib import Path

import pytest

from cache import Failure, Receipt, Store
from cache.ledger import Ledger


def failure(item: str, reason: str = "why") -> Failure:
    return Failure("image", item, "decode", reason, "2026-01-01T00:00:00Z")


@pytest.mark.parametrize("left", [1, 10, 60])
def test_a_torn_last_line_is_ignored_and_then_cut_off(tmp_path: Path, left: int) -> None:
    ledger = Ledger(tmp_path)
    for item in ("one", "two"):
        ledger.add_failure(failure(item))
    whole = ledger.path.read_bytes()
    ledger.add_failure(failure("torn"))
    ledger.path.write_bytes(ledger.path.read_bytes()[: len(whole) + left])
    assert [item for _, item in ledger.failures()] == ["one", "two"]
    ledger.mend()
    assert ledger.path.read_bytes() == whole
    ledger.add_failure(failure("three"))
    assert [item for _, item in ledger.failures()] == ["one", "two", "three"]


def test_a_line_that_lost_only_its_end_is_torn_too(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add_failure(failure("one"))
    ledger.path.write_bytes(ledger.path.read_bytes()[:-1])
    assert ledger.failures() == {}
    ledger.mend()
    assert ledger.path.read_bytes() == b""


def test_every_flipped_bit_costs_at_most_its_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for item in ("one", "two", "three"):
        ledger.add_failure(failure(item))
    data = ledger.path.read_bytes()
    expected = ledger.failures()
    second = range(data.index(b"\n") + 1, data.index(b"\n", data.index(b"\n") + 1))
    for at in second:
        for bit in (1, 16):
            changed = bytearray(data)
            changed[at] ^= bit
            ledger.path.write_bytes(bytes(changed))
            found = ledger.failures()
            assert found.items() <= expected.items() and found[("image", "one")] == expected[("image", "one")]
            if bytes(changed).count(b"\n") == 3:
                assert ("image", "two") not in found or json.loads(changed.splitlines()[1]) == json.loads(
                    data.splitlines()[1]
                )


def test_lines_of_a_later_version_do_no_harm(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("lease", {"owner": "x"})
    ledger.append("failure", {"table": "image", "item": "a", "stage": "s", "reason": "r", "severity": 3})
    ledger.append("failure", {"table": "image"})  # too little to be one
    ledger.append(
        "receipt", {"table": "image", "shard": "image-00000.h5", "rows": 1, "seconds": 0.0, "when": "", "by": "x"}
    )
    assert [f.item for f in ledger.failures().values()] == ["a"]
    assert ledger.receipts() == [Receipt("image", "image-00000.h5", 1, 0.0, "")]
    assert [number for number, record in ledger.lines() if record is None] == [3]


def test_any_text_survives(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    items = ["a\nb", "été 👗", "x" * 10_000, "\udcff", "nul\0", '"quoted"']
    for item in items:
        ledger.add_failure(failure(item, reason=item))
    assert [f.item for f in ledger.failures().values()] == items
    assert [f.reason for f in ledger.failures().values()] == items


def test_a_store_whose_ledger_is_torn_opens(three_shards: Path, writer) -> None:
    with writer() as w:
        w.fail("image", "kept", "decode", "why")
        w.fail("text", "\udcff", "encode", "no valid text")
        w.fail("image", "torn", "decode", "why")
    path = three_shards / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert [f.item for f in Store.open(three_shards).failures()] == ["kept", "\udcff"]
    with writer() as w:
        w.fail("image", "next", "decode", "why")
    assert [f.item for f in Store.open(three_shards).failures()] == ["kept", "\udcff", "next"]
    assert len(Store.open(three_shards).receipts()) == 4
