"""Shards and catalogs whose data lie elsewhere, with a right digest and manifest: refused, and nothing of it is read."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache import Store, verify
from cache.errors import StoreCorruptError
from cache.stat_cache import sha256_of
from manifests.identity import digest

SHARD, CATALOGUE = "text-00000.h5", "catalogue.h5"
KINDS = ("external storage", "virtual dataset", "external link", "soft link")


def replace_by(store: Path, name: str, dataset: str, kind: str) -> None:
    """Rewrite the file ``name`` with ``dataset`` kept in another file (or behind a link), all other data as they are."""
    file, other = store / name, store.parent / "elsewhere.bin"
    with h5py.File(file) as old:
        attributes, data = dict(old.attrs), {key: old[key][()] for key in old}
    file.unlink()
    secret = np.full_like(data[dataset], 3)
    with h5py.File(store.parent / "elsewhere.h5", "w") as elsewhere:
        elsewhere["data"] = secret
    other.write_bytes(secret.tobytes())
    with h5py.File(file, "w", libver="latest") as new:
        new.attrs.update(attributes)
        for key, value in data.items():
            if key != dataset:
                new[key] = value
            elif kind == "external storage":
                new.create_dataset(key, value.shape, value.dtype, external=[(str(other), 0, secret.nbytes)])
            elif kind == "virtual dataset":
                layout = h5py.VirtualLayout(value.shape, value.dtype)
                layout[:] = h5py.VirtualSource(str(store.parent / "elsewhere.h5"), "data", value.shape, value.dtype)
                new.create_virtual_dataset(key, layout)
            elif kind == "external link":
                new[key] = h5py.ExternalLink(str(store.parent / "elsewhere.h5"), "data")
            else:
                new.create_group("deep")["data"] = secret
                new[key] = h5py.SoftLink("/deep/data")
    with h5py.File(file) as made:  # HDF5 itself reads the other bytes: the case is real
        assert np.array_equal(made[dataset][()], secret)
    about = json.loads((store / "manifest.json").read_text())
    entry = about["catalogue"] if name == CATALOGUE else about["tables"]["text"]["shards"][0]
    entry.update(sha256=sha256_of(file), bytes=file.stat().st_size)
    if name == SHARD:
        entry.update(features_at=None, keys_at=None)
    about.pop("digest")
    (store / "manifest.json").write_text(json.dumps({**about, "digest": digest(about)}))


@pytest.mark.parametrize("dataset", ["features", "keys"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", ["digest", "always", "header"])
def test_a_shard_reads_only_itself(three_shards: Path, kind: str, dataset: str, check: str) -> None:
    replace_by(three_shards, SHARD, dataset, kind)
    store, rows = Store.open(three_shards, verify=check), np.arange(3)
    out = np.full((40, 6), -1, dtype=np.float32)
    for read in (
        lambda: store.load("text", out),
        lambda: store.gather("text", rows, out[:3]),
        lambda: store.keys("text"),
    ):
        with pytest.raises(StoreCorruptError, match=f"(?s){SHARD}.*'{dataset}'.*{kind}"):
            read()
    assert (out == -1).all()
    (finding,) = verify(three_shards)
    assert (finding.level, finding.code, finding.place) == ("error", "header", SHARD)
    assert kind in finding.what and f"'{dataset}'" in finding.what


@pytest.mark.parametrize("dataset", ["keys", "id_bytes", "id_ends"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_catalogue_reads_only_itself(three_shards: Path, kind: str, dataset: str) -> None:
    replace_by(three_shards, CATALOGUE, dataset, kind)
    with pytest.raises(StoreCorruptError, match=f"'{dataset}'.*{kind}"):
        Store.open(three_shards).catalogue()
    (finding,) = verify(three_shards)
    assert (finding.level, finding.code) == ("error", "catalogue") and kind in finding.what
