from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache import Store, StoreError
from cache.hdf5 import chunk_rows, contiguous_offset, write_hdf5
from cache.index import KeyIndex, duplicates
from cache.shards import nonfinite_rows


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, writer, rows) -> None:
    for name in ("a", "b"):
        if name == "b":
            time.sleep(1.1)  # a time in the file would show
        with writer(tmp_path / name) as w:
            w.commit("image", *rows(0, 700))
            w.bind({"one": bytes(16), "two": bytes(range(16))})
    for name in ("image-00000.h5", "catalogue.h5"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np; from pathlib import Path; from cache.hdf5 import write_hdf5\n"
        "junk = [bytearray(b'\\xff' * 5000) for _ in range(int(sys.argv[2]))]; del junk\n"
        "write_hdf5(Path(sys.argv[1]), {'a': np.arange(5000, dtype='f4').reshape(1000, 5)}, {'x': 'y', 'n': 3})"
    )
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for n, file in enumerate(files):
        subprocess.run(
            [sys.executable, "-c", script, str(file), str(n * 999)], check=True, cwd=Path(__file__).parents[2]
        )
    assert files[0].read_bytes() == files[1].read_bytes()


def test_five_lines_of_h5py_read_a_shard(three_shards: Path, rows) -> None:
    with h5py.File(three_shards / "image-00000.h5") as file:
        features, keys = file["features"][:], file["keys"][:]
        about = dict(file.attrs)
    assert (about["format"], about["table"], about["dim"], about["rows"]) == (b"fashion-ntm shard 1", b"image", 8, 300)
    assert features.dtype == np.float16 and keys.dtype == np.uint8
    assert np.array_equal(keys, rows(0, 300)[0]) and np.array_equal(features, rows(0, 300)[1])


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1000, 5000])
def test_rows_lie_in_one_piece_with_little_padding(tmp_path: Path, count: int) -> None:
    array = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    offset = write_hdf5(tmp_path / "x.h5", {"features": array}, {})["features"]
    with h5py.File(tmp_path / "x.h5") as file:
        data = file["features"]
        assert data.chunks == (chunk_rows(count), 3) and data.chunks[0] <= 256
        assert (
            offset % 4096 == 0
            and data.compression is None
            and data.maxshape == data.shape
            and contiguous_offset(data) == offset
        )
        assert np.array_equal(data[:], array)
    assert np.array_equal(np.memmap(tmp_path / "x.h5", "<f4", "r", offset, (count, 3)), array)
    assert (tmp_path / "x.h5").stat().st_size <= 4 * 4096 + array.nbytes * 1.004


@pytest.mark.parametrize(
    "options", [{"compression": "gzip"}, {"maxshape": (None, 3)}, {"chunks": (10, 1)}, {"fletcher32": True}]
)
def test_what_does_not_lie_in_one_piece_is_told(tmp_path: Path, options: dict) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset("features", (1000, 3), "f4", **{"chunks": (10, 3), **options})
        for start in range(990, -1, -10):  # last chunk first
            data[start : start + 10] = 1
        assert contiguous_offset(data) is None


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_nan_and_inf_are_found_and_nothing_else(dtype: str) -> None:
    features = np.random.default_rng(0).standard_normal((5000, 3)).astype(dtype)
    features[7] = np.finfo(dtype).max
    features[8] = -np.finfo(dtype).max
    features[9] = np.finfo(dtype).smallest_subnormal
    assert len(nonfinite_rows(features)) == 0
    features[3, 1], features[2999, 0], features[4999, 2] = np.nan, np.inf, -np.inf
    assert nonfinite_rows(features).tolist() == [3, 2999, 4999]
    assert nonfinite_rows(features[:, ::-1]).tolist() == [3, 2999, 4999]


def test_the_index_finds_keys_whose_heads_are_equal() -> None:
    index, keys = KeyIndex(), np.zeros((600, 16), dtype=np.uint8)
    keys[:, 8:12] = np.arange(600, dtype="<u4").view(np.uint8).reshape(600, 4)
    halves = keys.view(np.uint64)
    halves[:, 0] = halves[:, 1] * np.uint64(0x9E3779B97F4A7C15)  # cancels the head: all are zero
    for start in range(0, 600, 50):
        index.add(keys[start : start + 50])
    assert index.rows == 600 and index.find(keys).tolist() == list(range(600))
    assert index.find(keys + 1).tolist() == [-1] * 600
    assert index.find(np.empty((0, 16), np.uint8)).tolist() == []
    assert duplicates(np.concatenate([keys, keys[5:7]])).tolist() == [600, 601]


def test_any_layout_in_memory_gives_the_same_bytes(tmp_path: Path, writer, rows) -> None:
    keys, features = rows(0, 300)
    layouts = [features, features.astype(">f2"), np.asfortranarray(features), np.repeat(features, 2, axis=1)[:, ::2]]
    for n, layout in enumerate(layouts):
        with writer(tmp_path / str(n)) as w:
            w.commit("image", keys[::-1][::-1], layout)
        assert Store.open(tmp_path / str(n)).load("image").tobytes() == features.tobytes()
    assert len({(tmp_path / str(n) / "image-00000.h5").read_bytes() for n in range(len(layouts))}) == 1


def bad_rows(keys: np.ndarray, features: np.ndarray) -> dict[str, tuple]:
    holes = features.copy()
    holes[[3, 5]] = np.nan
    again = keys.copy()
    again[4] = again[1]
    return {
        r"NaN or Inf in rows 3, 5 of 10": (keys, holes),
        r"keys appear twice in row 4 of 10": (again, features),
        r"9 keys for 10 rows": (keys[:9], features),
        r"nothing to commit": (keys[:0], features[:0]),
        r"uint8 \[n, 16\], not uint8 \[10, 15\]": (keys[:, :15], features),
        r"uint8 \[n, 16\], not int64": (keys.astype(np.int64), features),
        r"float16 or float32 \[n, D\], not float64": (keys, features.astype(np.float64)),
        r"float16 or float32 \[n, D\], not list": (keys, features.tolist()),
        r"holds float16 \[n, 8\], not float32 \[n, 8\]": (keys, features.astype(np.float32)),
        r"holds float16 \[n, 8\], not float16 \[n, 7\]": (keys, features[:, :7]),
        r"unknown table": None,
    }


def test_rows_that_must_not_enter_are_named(writer, rows, path: Path) -> None:
    with writer() as w:
        w.commit("image", *rows(100, 10))
        for message, bad in bad_rows(*rows(0, 10)).items():
            with pytest.raises(StoreError, match=message):
                w.commit("picture" if bad is None else "image", *(bad or rows(0, 10)))
        with pytest.raises(StoreError, match=r"already has 5 of these 10 rows"):
            w.commit("image", *rows(105, 10))
        w.commit("image", *rows(0, 10))
    assert Store.open(path).tables["image"].rows == 20
