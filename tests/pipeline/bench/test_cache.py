from __future__ import annotations

import json

from pipeline.bench.cache import render, run


def test_every_figure_is_there_and_is_plain(tmp_path) -> None:
    result = run(rows=600, dim=16, repeats=1, shards=3, folder=tmp_path)
    assert json.loads(json.dumps(result)) == result and not list(tmp_path.iterdir())
    assert {"setting", "gather", "load", "commit", "disk", "resume", "open"} == result.keys()
    assert {"store", "memmap", "h5py", "store/memmap", "store/h5py", "shards"} == result["gather"].keys()
    assert result["disk"]["store"] > result["disk"]["raw"] == 600 * 16 * 2 + 600 * 16
    assert result["open"]["shards"] == 3
    text = render(result)
    assert "600 x 16 float16" in text and "store of 3 shards" in text and text.count("x as fast") == 6
