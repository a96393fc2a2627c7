"""The known-score check: FashionIQ's two gallery protocols, one-turn queries, and published values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from manifests.errors import ManifestError
from manifests.load import load_dataset
from manifests.one_turn import one_turn_sessions
from manifests.schema import Component, RunSpec
from tests.pipeline.extraction.conftest import save_bert

WORDS = ["red dress", "blue shirt", "green top", "plain collar", "floral sleeve", "short black dress"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FashionIQ's layout, with captions in place of images: 6 images a list, of which the pairs name 4."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("captions", "image_splits"):
        (root / "fashioniq" / folder).mkdir(parents=True)
    (root / "words").mkdir()
    for category in ("dress", "shirt", "toptee"):
        for split in ("train", "val"):
            ids = [f"{category}-{split}-{n}" for n in range(6)]
            pairs = [
                {"candidate": ids[0], "target": ids[1], "captions": ["is blue", "has a collar"]},
                {"candidate": ids[2], "target": ids[3], "captions": ["is more floral", "and short"]},
            ]
            (root / "fashioniq" / "captions" / f"cap.{category}.{split}.json").write_text(json.dumps(pairs))
            (root / "fashioniq" / "image_splits" / f"split.{category}.{split}.json").write_text(json.dumps(ids))
            captions = dict(zip(ids, WORDS, strict=True))
            (root / "words" / f"image_captions_{category}_{split}.json").write_text(json.dumps(captions))
    return root


@pytest.fixture(scope="module")
def spec(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = save_bert(tmp_path_factory.mktemp("model") / "bert")
    file = data / "check.toml"
    file.write_text(
        f'name = "check"\n[dataset]\nname = "fashioniq"\ncaptions = "words"\n[extractor]\nname = "caption"\nmodel = "{model}"\n'
        '[composer]\nname = "fusion"\n[models.last]\n'
    )
    return file


def test_both_protocols_are_ranked_from_one_store(data: Path, spec: Path, tmp_path: Path) -> None:
    words = ["check-extractor", str(spec), "--data", str(data), "--out", str(tmp_path), "--published", "R@10=50"]
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    original, val = json.loads(done.stdout)
    assert original["protocol"] == "fashioniq, original protocol" and val["protocol"] == "fashioniq, val protocol"
    assert original["galleries"] == {"dress": 6, "shirt": 6, "toptee": 6} and set(val["galleries"].values()) == {4}
    for found in (original, val):
        assert found["values"]["overall"] == {"R@10": 100.0, "R@50": 100.0, "mean": 100.0, "n": 6}
        assert found["differences"] == {"R@10": 50.0}
        assert found["warnings"] == [
            f"warning: {found['protocol']}: R@10 differs from the published value by +50.0, more than 1"
        ]
    assert len(list((tmp_path / "stores" / "fashioniq").glob("caption-*"))) == 1
    text = CliRunner().invoke(main, [*words, "--tolerance", "60"]).stdout
    assert "ours - published" in text and "warning" not in text and "+50.0" in text


def test_a_metric_that_is_none_is_refused(spec: Path) -> None:
    done = CliRunner().invoke(main, ["check-extractor", str(spec), "--published", "R@11=3"])
    assert done.exit_code == 2 and "one of R@10, R@50, mean" in done.output


def test_a_pair_without_a_word_is_a_problem_with_its_place(data: Path, tmp_path: Path) -> None:
    file = data / "fashioniq" / "captions" / "cap.dress.val.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps([{"candidate": "a", "target": "b", "captions": [" "]}]))
        job = RunSpec(name="x", dataset=Component(name="fashioniq"), extractor=Component(name="none"))
        with pytest.raises(ManifestError, match=r"cap\.dress\.val\.json.*entry 0.*captions with a word"):
            load_dataset(job, data)
    finally:
        file.write_text(before)


def jsonl(folder: Path, *lines: dict) -> Path:
    folder.mkdir()
    images = "".join(json.dumps({"id": i, "caption": f"a {i}"}) + "\n" for i in "abcd")
    (folder / "images.jsonl").write_text(images)
    (folder / "sessions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_sessions_of_one_turn_are_accepted_where_asked(tmp_path: Path) -> None:
    def turn(reference: str, text: str) -> dict:
        return {"reference": reference, "captions": [text]}

    one = {"id": "s", "category": "x", "split": "test", "target": "b", "turns": [turn("a", "red")]}
    two = {"id": "t", "category": "x", "split": "test", "target": "b", "turns": [turn("c", "long"), turn("a", "red")]}
    jsonl(tmp_path / "own", one, two)
    job = RunSpec(name="x", dataset=Component(name="jsonl", folder="own"), extractor=Component(name="none"))
    with pytest.raises(ManifestError, match=r"has one turn.*dataset\.one_turn = true accepts it"):
        load_dataset(job, tmp_path)
    allowed = job.model_copy(update={"dataset": Component(name="jsonl", folder="own", one_turn=True)})
    dataset = load_dataset(allowed, tmp_path)
    sessions, outside = one_turn_sessions(dataset)  # (a, red, b) is in both sessions
    assert [(s.id, s.turns[0].reference, s.target) for s in sessions] == [("s", "a", "b"), ("t#1", "c", "a")]
    assert outside == 0


def test_shoes_are_read_without_chains(tmp_path: Path) -> None:
    root = tmp_path / "shoes"
    root.mkdir()
    names = {"train": ["t1", "t2", "t3"], "eval": ["e1", "e2", "e3"]}
    for split, ids in names.items():
        (root / f"{split}_im_names.txt").write_text("\n".join(ids))
    edges = [("t1", "t2"), ("t2", "t3"), ("e1", "e2"), ("e3", "e2")]
    rows = [{"ReferenceImageName": a, "ImageName": b, "RelativeCaption": "is red"} for a, b in edges]
    (root / "relative_captions_shoes.json").write_text(json.dumps(rows))
    (root / "words.json").write_text(json.dumps({i: f"shoe {i}" for ids in names.values() for i in ids}))
    dataset = Component(name="shoes", captions="shoes/words.json", one_turn=True)
    job = RunSpec(name="x", dataset=dataset, extractor=Component(name="none"))
    found = load_dataset(job, tmp_path)
    assert [len(s.turns) for s in found.sessions] == [1, 1, 1, 1]
    assert [(s.turns[0].reference, s.target) for s in found.split("test")] == [("e1", "e2"), ("e3", "e2")]
