"""The serve benchmark at sizes that take no time: the shape of its figures, and that its subjects agree."""

from __future__ import annotations

from pipeline.bench import serve


def test_every_subject_has_its_percentiles() -> None:
    result = serve.run(galleries=(50, 300), dim=16, k=5, repeats=4, stages=2, device="cpu")
    assert [row["size"] for row in result["galleries"]] == [50, 300]
    for row in result["galleries"]:
        assert {"turn", "search", "matmul"} <= set(row["ms"])
        assert all(0 < found["50"] <= found["95"] <= found["99"] for found in row["ms"].values())
        assert row["same_top_k_as_faiss"] in (None, 1.0)
    assert "x matmul" in serve.render(result) and "300" in serve.render(result)
