"""docs/store-format.md says what is so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from cache import Store, StoreVersionError, verify, write_shard
from cache.ledger import Ledger
from manifests.identity import digest

PAGE = Path(__file__).parents[2] / "docs" / "store-format.md"


def test_the_five_lines_of_the_page_read_a_store(path: Path, writer, rows) -> None:
    with writer() as w:
        for start in (0, 30):
            w.commit("target", *rows(start, 30))
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert sum(bool(line.strip()) for line in lines.split("\n")) == 5
    for name in ("features", "keys"):
        lines += f'np.save("{name}.npy", {name})\n'
    subprocess.run(
        [sys.executable, "-c", lines + "import sys; assert 'cache' not in sys.modules"], cwd=path, check=True
    )
    keys, features = rows(0, 60)
    assert np.array_equal(np.load(path / "features.npy"), features) and np.array_equal(np.load(path / "keys.npy"), keys)


def test_digests_are_as_the_page_says(three_shards: Path) -> None:
    about = json.loads((three_shards / "manifest.json").read_text())
    assert about.pop("digest") == digest(about) and about["fingerprint"] == digest(about["fields"])
    for line in (three_shards / "ledger.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record.pop("crc") == f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"
    assert len(Ledger(three_shards).receipts()) == 4


def test_the_page_names_every_file_and_key_there_is(three_shards: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    about = json.loads((three_shards / "manifest.json").read_text())
    table = about["tables"]["image"]
    for key in (*about, *table, *table["shards"][0], *about["catalogue"]):
        assert f"`{key}`" in page, key
    for file in three_shards.iterdir():
        name = re.sub(r"(image|text)-\d+", "<table>-00000", file.name)
        assert f"`{name}`" in page, name


def test_a_newer_version_is_refused_by_readers_writers_and_verify(three_shards: Path, writer, rows) -> None:
    manifest = three_shards / "manifest.json"
    about = {**json.loads(manifest.read_text()), "version": 2, "tables": "in a new shape"}
    del about["digest"]
    manifest.write_text(json.dumps({**about, "digest": digest(about)}))
    before = manifest.read_bytes()
    message = r"manifest.json is in format 2; this version of the project reads up to format 1: upgrade the project"
    for use in (
        lambda: Store.open(three_shards),
        writer,
        lambda: verify(three_shards),
        lambda: write_shard(three_shards, "image", *rows(900, 3)),
    ):
        with pytest.raises(StoreVersionError, match=message):
            use()
    assert manifest.read_bytes() == before and len(list(three_shards.glob("*.h5"))) == 5


def test_a_manifest_with_more_keys_is_read(three_shards: Path, rows) -> None:
    manifest = three_shards / "manifest.json"
    about = {**json.loads(manifest.read_text()), "remark": "made by a later version"}
    del about["digest"]
    manifest.write_text(json.dumps({**about, "digest": digest(about)}))
    assert np.array_equal(Store.open(three_shards).load("image"), rows(0, 600)[1])
