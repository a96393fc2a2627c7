from __future__ import annotations

import importlib.util
import json

import pytest

from pipeline.bench.cache import _goals, render, run


@pytest.mark.slow
def test_every_figure_is_there_and_is_plain(tmp_path) -> None:
    result = run(rows=600, dim=16, repeats=1, shards=3, folder=tmp_path)
    assert json.loads(json.dumps(result)) == result and not list(tmp_path.iterdir())
    peers = {"np.memmap / np.load", "h5py, chunk (256, D)", "h5py, chunk (1, D)", "safetensors"}
    peers |= {name for module, name in (("lmdb", "LMDB"), ("zarr", "zarr")) if importlib.util.find_spec(module)}
    for part in ("gather", "load"):
        assert {name for name in result[part] if f"store/{name}" in result[part]} - {"store, digests computed"} == peers
    assert {f"{name} / features" for name in peers} <= result["disk"].keys()
    assert result["disk"]["store"] > result["disk"]["raw"] == 600 * 16 * 2 + 600 * 16
    assert result["memory"]["result"] == 256 * 16 * 2 < result["memory"]["peak"]
    assert result["open"]["shards"] == 3
    assert len(result["goals"]) == 8
    changed = {"memory": result["memory"] | {"peak/result": 2.5}, "disk": result["disk"] | {"store/raw": 1.02}}
    changed["commit"] = result["commit"] | {"store/h5py append + fsync": 0.69}
    met = {goal["what"].split()[0]: goal["met"] for goal in _goals(result | changed)}
    assert met["disk"] and not met["memory"] and not met["commit"]
    text = render(result)
    assert "600 x 16 float16" in text and "store of 3 shards" in text
    assert text.count("x as fast") == 2 * len(peers) + 4
    assert all(f"  {name} " in text for name in peers)
