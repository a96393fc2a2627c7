"""Damaged stores: any byte of any file, cut, longer, swapped, missing. Never a wrong row, always one of our errors.

Each run is a child process, so that a crash of the interpreter (HDF5 is C) is seen and is not the test's own end.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache import Store, StoreWriter, verify
from manifests.errors import FashionNTMError

FILES = ("image-00000.h5", "image-00001.h5", "text-00000.h5", "catalogue.h5", "manifest.json", "ledger.jsonl")


def contents(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = {"catalogue": store.catalogue()}
    for table, info in store.tables.items():
        found[table] = (store.load(table).tobytes(), store.keys(table).tobytes())
        picked = np.arange(info.rows)[::-7].copy()
        assert np.array_equal(store.gather(table, picked), store.load(table)[picked], equal_nan=True)
        assert (store.find(table, store.keys(table)) >= 0).all()
    return found


def flip(data: bytearray, rng: random.Random) -> None:
    # half of the flips in the first 2 kB or the last 1 kB, where HDF5 keeps its structure
    near = rng.choice((range(min(2048, len(data))), range(max(0, len(data) - 1024), len(data)), range(len(data))))
    for _ in range(rng.choice((1, 1, 1, 8))):
        data[rng.choice(near)] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def lengthen(data: bytearray, rng: random.Random) -> None:
    data += rng.randbytes(rng.randrange(1, 100))


def blank(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start : start + 512] = bytes(len(data[start : start + 512]))


def damage(path: Path, rng: random.Random) -> str:
    """Change one file (or two) of a store; gives what was done."""
    name = rng.choice(FILES)
    file = path / name
    how = rng.choice((flip, flip, flip, flip, cut, lengthen, blank, "swap", "delete", "link"))
    if how == "swap":
        other = path / rng.choice([f for f in FILES if f != name])
        a, b = file.read_bytes(), other.read_bytes()
        file.write_bytes(b)
        other.write_bytes(a)
    elif how == "delete":
        file.unlink()
    elif how == "link":
        file.unlink()
        file.symlink_to(path / FILES[0] if name != FILES[0] else "/dev/null")
    else:
        data = bytearray(file.read_bytes())
        how(data, rng)
        file.write_bytes(bytes(data))
    return f"{getattr(how, '__name__', how)} {name}"


def fuzz(whole: Path, folder: Path, seed: int, rounds: int) -> None:
    expected, rng = contents(Store.open(whole)), random.Random(seed)
    for n in range(rounds):
        path = shutil.copytree(whole, folder / f"{seed}-{n}")
        done = damage(path, rng)
        for check in ("digest", "always", "header"):
            try:
                found = contents(Store.open(path, verify=check))
                # "header" promises the size and header only: what it must not do is crash
                assert check == "header" or found == expected, f"{done}: other rows"
            except FashionNTMError:
                pass
        try:
            verify(path)
            with StoreWriter(path, dataset="demo", extractor="clip", fields=Store.open(path).fields) as w:
                w.missing("image", np.zeros((1, 16), np.uint8))
                w.failures()
            after = Store.open(path)
            for table in ("image", "text"):
                if table in after.tables:  # a shard may be gone with its manifest, but no row is another
                    rows = dict(zip(*split(expected[table], table), strict=True))
                    features = (after.load(table).tobytes(), after.keys(table).tobytes())
                    assert all(rows[key] == row for key, row in zip(*split(features, table), strict=True)), done
        except FashionNTMError:
            pass
        shutil.rmtree(path)


def split(table: tuple[bytes, bytes], name: str) -> tuple[list[bytes], list[bytes]]:
    """Keys, and rows as bytes."""
    features, keys = table
    width = {"image": 16, "text": 24}[name]
    return (
        [keys[n : n + 16] for n in range(0, len(keys), 16)],
        [features[n : n + width] for n in range(0, len(features), width)],
    )


def test_twenty_damages(three_shards: Path, tmp_path: Path, child: Callable) -> None:
    assert child(lambda: fuzz(three_shards, tmp_path, 1, 20)) == 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_hundreds_of_damages(three_shards: Path, tmp_path: Path, child: Callable) -> None:
    assert child(lambda: fuzz(three_shards, tmp_path, 2, 150)) == 0


def fuzz_headers(whole: Path, folder: Path, seed: int, rounds: int) -> None:
    """Damaged structure with a right digest: HDF5 parses it. A file made so by intent, or by a failing memory."""
    import hashlib
    import json

    from manifests.identity import digest

    rng = random.Random(seed)
    about = json.loads((whole / "manifest.json").read_text())
    del about["digest"]
    original = (whole / FILES[0]).read_bytes()
    path = shutil.copytree(whole, folder / f"headers {seed}")
    shard = about["tables"]["image"]["shards"][0]
    for _ in range(rounds):
        data = bytearray(original)
        flip(data, rng)
        (path / FILES[0]).write_bytes(bytes(data))
        shard["sha256"] = hashlib.sha256(data).hexdigest()
        for name in ("features_at", "keys_at"):
            shard[name] = rng.choice((None, shard[name]))
        (path / "manifest.json").write_text(json.dumps({**about, "digest": digest(about)}))
        for check in ("digest", "header"):
            with suppress(FashionNTMError):
                contents(Store.open(path, verify=check))
        with suppress(FashionNTMError):
            verify(path)


@pytest.mark.slow
def test_damaged_structure_under_a_right_digest(three_shards: Path, tmp_path: Path, child: Callable) -> None:
    assert child(lambda: fuzz_headers(three_shards, tmp_path, 1, 30)) == 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_much_damaged_structure_under_a_right_digest(three_shards: Path, tmp_path: Path, child: Callable) -> None:
    assert child(lambda: fuzz_headers(three_shards, tmp_path, 2, 200)) == 0
