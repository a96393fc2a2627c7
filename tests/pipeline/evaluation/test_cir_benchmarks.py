"""CIRR's and CIRCO's metrics by hand, from files of their layout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import main
from manifests.errors import ManifestError
from pipeline.evaluation.cir_benchmarks import NOT_LISTED, score_benchmark
from pipeline.evaluation.metrics import average_precision
from tests.pipeline.extraction.conftest import picture, save_clip


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


CIRR = [
    {"pairid": 7, "reference": "r", "target_hard": "t", "img_set": {"id": 1, "members": ["r", "a", "t", "b"]}},
    {"pairid": 8, "reference": "a", "target_hard": "b", "img_set": {"id": 2, "members": ["a", "b", "c"]}},
]
CIRCO = [
    {
        "id": 0,
        "reference_img_id": 1,
        "target_img_id": 2,
        "gt_img_ids": [2, 3],
        "semantic_aspects": ["cardinality"],
    },
    {"id": 1, "reference_img_id": 5, "target_img_id": 6, "gt_img_ids": [6], "semantic_aspects": []},
]


def test_cirr_ranks_without_the_reference_and_within_the_image_set(tmp_path: Path) -> None:
    annotations = written(tmp_path / "cap.rc2.val.json", CIRR)
    lists = {"version": "rc2", "metric": "recall", "7": ["r", "x", "y", "t", "a", "b"], "8": ["x", "c", "y"]}
    found = score_benchmark(written(tmp_path / "cirr.json", lists), annotations)
    # pair 7: x, y, t, ...: third of all, first of its set. pair 8: its target is not listed
    assert found.benchmark == "CIRR" and found.short == 1
    assert found.metrics == {
        "R@1": 0.0,
        "R@5": 50.0,
        "R@10": 50.0,
        "R@50": 50.0,
        "R_subset@1": 50.0,
        "R_subset@2": 50.0,
        "R_subset@3": 50.0,
        "mean": 50.0,
    }


def test_average_precision_is_divided_by_what_can_be_found() -> None:
    assert average_precision([1, 3, 4], 5) == pytest.approx(100 * (1 + 2 / 3 + 3 / 4) / 3)
    assert average_precision([1, 3, 4], 2) == pytest.approx(100 * 1 / 2)
    assert average_precision([1, NOT_LISTED], 5) == pytest.approx(100 * 1 / 2)
    assert average_precision([NOT_LISTED], 5) == 0


def test_circo_counts_all_ground_truths(tmp_path: Path) -> None:
    annotations = written(tmp_path / "val.json", CIRCO)
    found = score_benchmark(written(tmp_path / "circo.json", {"0": [1, 3, 9, 2], "1": [8, 6]}), annotations)
    first, second = 100 * (1 + 2 / 3) / 2, 100 / 2
    assert found.metrics["mAP@5"] == pytest.approx((first + second) / 2)
    assert found.metrics["R@5"] == 100 and found.aspects == {"cardinality": pytest.approx(first)}
    (tmp_path / "run.trec").write_text("0 Q0 3 1 2.0 x\n0 Q0 9 2 2.0 x\n0 Q0 2 3 1.0 x\n1 Q0 6 1 0.5 x\n")
    tied = score_benchmark(tmp_path / "run.trec", annotations)  # 9 ties with 3, a ground truth, and goes before it
    assert tied.metrics["mAP@5"] == pytest.approx((100 * (1 / 2 + 2 / 3) / 2 + 100) / 2)


def test_every_query_is_needed_and_unknown_ones_are_named(tmp_path: Path) -> None:
    annotations = written(tmp_path / "val.json", CIRCO)
    with pytest.raises(ManifestError, match="1 of 2 queries have no list, such as '1'"):
        score_benchmark(written(tmp_path / "a.json", {"0": [2]}), annotations)
    with pytest.raises(ManifestError, match="no query '12'"):
        score_benchmark(written(tmp_path / "b.json", {"0": [2], "1": [6], "12": [6]}), annotations)
    test = written(tmp_path / "test.json", [{"id": 0, "reference_img_id": 1, "relative_caption": "x"}])
    with pytest.raises(ManifestError, match=r"entry 0.*test files have no targets"):
        score_benchmark(tmp_path / "a.json", test)


@pytest.mark.parametrize(
    "text",
    [
        '{"0": ["2"], "1": ["6"], "0": ["3"]}',
        '{"session": "0", "images": ["2"]}\n{"session": "1", "images": ["6"]}\n{"session": "0", "images": ["3"]}\n',
    ],
)
def test_a_query_with_two_lists_is_refused(tmp_path: Path, text: str) -> None:
    lists = tmp_path / "lists"
    lists.write_text(text)
    with pytest.raises(ManifestError, match=r"'0' is (there twice|listed before)"):
        score_benchmark(lists, written(tmp_path / "val.json", CIRCO))


def test_the_published_annotations_of_circo_are_read(tmp_path: Path) -> None:
    file = Path(os.environ.get("FASHION_NTM_TEST_DATA", "")) / "circo" / "val.json"
    if not file.is_file():
        pytest.skip("FASHION_NTM_TEST_DATA has no circo/val.json")
    records = json.loads(file.read_text())
    first = written(tmp_path / "first.json", {str(r["id"]): [r["target_img_id"]] for r in records})
    done = CliRunner().invoke(main, ["score", str(first), "--annotations", str(file), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    wanted = sum(100 / min(len(set(r["gt_img_ids"])), 5) for r in records) / len(records)
    assert found["queries"] == len(records) and found["metrics"]["mAP@5"] == pytest.approx(wanted)
    assert found["metrics"]["R@5"] == 100 and len(found["aspects"]) > 5


def test_a_spec_s_own_lists_are_scored_on_circo(tmp_path: Path) -> None:
    """From the annotations and images to mAP@K: one-turn sessions, a training-free query, lists."""
    truths = [{"id": n, "reference_img_id": n, "target_img_id": 3, "gt_img_ids": [3, 4]} for n in (1, 2)]
    (tmp_path / "circo").mkdir()
    written(tmp_path / "circo" / "val.json", [{**q, "relative_caption": "is more red"} for q in truths])
    for n in range(1, 5):
        picture(n).save(tmp_path / f"{n:012d}.jpg")
    (tmp_path / "own.toml").write_text(
        f'name = "own"\n[dataset]\nname = "circo"\nimages = "{tmp_path}"\n[extractor]\nname = "clip"\n'
        f'model = "{save_clip(tmp_path / "clip")}"\n[composer]\nname = "fusion"\n[models.last]\n'
    )
    words = ("--data", str(tmp_path), "--out", str(tmp_path / "out"))

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(main, list(arguments))
        assert done.exit_code == 0, done.output
        return done.stdout

    spec = str(tmp_path / "own.toml")
    assert "circo, one-turn queries" in call("check-extractor", spec, "--to", str(tmp_path / "lists"), *words)
    (file,) = (tmp_path / "lists").iterdir()
    assert sorted(json.loads(file.read_text().splitlines()[0])["images"]) == ["1", "2", "3", "4"]
    text = call("score", str(file), "--annotations", str(tmp_path / "circo" / "val.json"))
    assert "CIRCO, 2 queries" in text and "R@5              100.00" in text
