"""Multi-turn Shoes: the chain rule, its counts on the real edges, published chain lists, held-out sessions."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.datasets import datasets
from manifests.datasets._chains import Edge, build_chains
from manifests.errors import ManifestError
from manifests.schema import Dataset

SOURCE = datasets.get("shoes")


def load(data: Path, **options: Any) -> Dataset:
    return SOURCE.load(SOURCE.Options(**options), data)


def edges(*pairs: str) -> list[Edge]:
    return [Edge(pair[0], pair[1], f"{pair[0]} to {pair[1]}") for pair in pairs]


def shapes(*pairs: str) -> list[str]:
    return ["".join(e.reference for e in chain) + chain[-1].target for chain in build_chains(edges(*pairs))]


def test_a_path_becomes_its_longest_chains() -> None:
    assert shapes("ab", "bc", "cd") == ["bcd", "abcd"]  # "abc" begins the kept "abcd"
    assert shapes("ab", "bc", "cd", "de", "ef") == ["def", "cdef", "abcde", "bcdef"]


def test_only_the_first_chain_of_each_start_image_is_kept() -> None:
    assert shapes("ab", "bc", "bd") == ["abc"]
    assert shapes("ab", "ac", "cd", "bd") == ["abd"]


def test_self_loops_and_returns_are_skipped() -> None:
    assert shapes("aa", "ab", "bb", "bc") == ["abc"]
    assert shapes("ab", "ba") == []  # only a return to a reference of the chain
    assert shapes("ab", "ba", "bc") == ["abc"]


def test_one_pair_with_two_captions_is_two_edges() -> None:
    chains = build_chains([Edge("a", "b", "first"), Edge("a", "b", "second"), Edge("b", "c", "then")])
    assert [[e.caption for e in chain] for chain in chains] == [["first", "then"]]


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.sampled_from("abcdefg")), max_size=40))
def test_chains_of_any_edges(pairs: list[tuple[str, str]]) -> None:
    chains = build_chains([Edge(a, b, f"{n}") for n, (a, b) in enumerate(pairs)])
    starts = [(len(chain), chain[0].reference) for chain in chains]
    assert len(set(starts)) == len(starts)
    assert [len(c) for c in chains] == sorted(len(c) for c in chains)
    for chain in chains:
        assert 2 <= len(chain) <= 4
        references = [e.reference for e in chain]
        assert len(set(references)) == len(references)
        assert chain[-1].target not in references
        assert [e.target for e in chain[:-1]] == references[1:]
    begun = {chain[:-1] for chain in chains}
    assert not begun & set(chains)


@pytest.fixture(scope="module")
def real(shared_data: Path) -> Dataset:
    return load(shared_data, captions="shoes/image_captions_shoes.json")


def test_counts_on_the_real_edges(real: Dataset) -> None:
    assert real.turn_counts("train") == {2: 1684, 3: 917, 4: 942}
    assert real.turn_counts("test") == {}
    assert (real.gallery_images("train"), real.gallery_images("test")) == (10000, 4658)
    assert real.averaging == "sessions"
    assert all(image.caption for image in real.images.values())
    assert any(note.startswith("no test sessions") for note in real.notes)


def test_real_holdout_shares_no_pair(shared_data: Path) -> None:
    dataset = load(shared_data, holdout=0.1)
    test, train = dataset.split("test"), dataset.split("train")
    assert len(test) + len(train) == 1684 + 917 + 942
    assert 0.095 < len(test) / 3543 <= 0.1
    assert not {p for s in test for p in s.pairs} & {p for s in train for p in s.pairs}
    assert len(dataset.gallery("shoes", "test").images) == 10000
    assert any("held out as test sessions" in note and "Not the paper's test split" in note for note in dataset.notes)
    assert len({s.id for s in dataset.sessions}) == len(dataset.sessions)


@pytest.mark.parametrize("captions", [False, True])
def test_a_published_chain_list_reads_back(real: Dataset, shared_data: Path, tmp_path: Path, captions: bool) -> None:
    path = tmp_path / "chains.jsonl"
    with open(path, "w") as file:
        for s in real.sessions:
            record = {"id": s.id, "split": s.split, "images": [*(turn.reference for turn in s.turns), s.target]}
            texts = {"captions": [" and ".join(turn.captions) for turn in s.turns]} if captions else {}
            file.write(json.dumps(record | texts) + "\n")
    again = load(shared_data, captions="shoes/image_captions_shoes.json", chains=str(path))
    assert again.sessions == real.sessions


@pytest.fixture
def small(tmp_path: Path) -> Path:
    root = tmp_path / "shoes"
    root.mkdir()
    train, test = [f"t{n}.jpg" for n in range(6)], [f"e{n}.jpg" for n in range(5)]
    (root / "train_im_names.txt").write_text("\n".join(train) + "\n")
    (root / "eval_im_names.txt").write_text("\n".join(test) + "\n")
    pairs = [*pairwise(train), *pairwise(test), (train[0], test[0])]
    rows = [{"ReferenceImageName": a, "ImageName": b, "RelativeCaption": f"not {a}"} for a, b in pairs]
    (root / "relative_captions_shoes.json").write_text(json.dumps(rows))
    return tmp_path


def test_a_file_with_both_splits(small: Path) -> None:
    dataset = load(small)
    assert {s.split for s in dataset.sessions} == {"train", "test"}
    assert dataset.turn_counts("test") == {2: 1, 3: 1, 4: 1}
    assert dataset.gallery("shoes", "test").images == tuple(f"e{n}.jpg" for n in range(5))
    assert [s.id for s in dataset.split("test")] == ["shoes/test/00000", "shoes/test/00001", "shoes/test/00002"]
    assert any(note.startswith("1 of 10 edges left out") for note in dataset.notes)


def test_holdout_beside_test_sessions_is_a_problem(small: Path) -> None:
    with pytest.raises(ManifestError, match=r"key dataset\.holdout: the file has test sessions of its own"):
        load(small, holdout=0.2)


def test_holdout_is_a_part_or_a_whole_number(shared_data: Path) -> None:
    with pytest.raises(ValueError, match="a whole number of sessions"):
        SOURCE.Options(holdout=1.5)
    assert len(load(shared_data, holdout=100).split("test")) == 100


def test_images_lie_in_subfolders(small: Path) -> None:
    (small / "images/womens_boots/0").mkdir(parents=True)
    (small / "images/womens_boots/0/t0.jpg").write_bytes(b"x")
    assert load(small, images="images").images["t0.jpg"].file == "womens_boots/0/t0.jpg"


def test_problems_are_reported_together(small: Path) -> None:
    root = small / "shoes"
    (root / "eval_im_names.txt").unlink()
    rows = json.loads((root / "relative_captions_shoes.json").read_text())
    rows[1] = {"ImageName": "t1.jpg"}
    rows[2]["RelativeCaption"] = "  "
    (root / "relative_captions_shoes.json").write_text(json.dumps(rows))
    with pytest.raises(ManifestError) as caught:
        load(small, captions="nowhere.json", images="nowhere")
    found = [(Path(p.file).name, p.place) for p in caught.value.problems]
    assert ("eval_im_names.txt", "") in found
    assert ("relative_captions_shoes.json", "entry 1") in found
    assert ("relative_captions_shoes.json", "entry 2") in found
    assert ("nowhere.json", "") in found
    assert ("nowhere", "key dataset.images") in found


def test_a_wrong_chain_list_names_its_lines(small: Path) -> None:
    lines = [
        '{"id": "a", "split": "train", "images": ["t0.jpg", "t1.jpg", "t2.jpg"]}',
        '{"id": "b", "split": "train", "images": ["t0.jpg", "t2.jpg", "t3.jpg"]}',
        '{"id": "c", "split": "valid", "images": ["t0.jpg", "t1.jpg", "t2.jpg"]}',
        '{"id": "d", "split": "train", "images": ["t0.jpg", "t1.jpg", "t2.jpg"], "captions": ["one"]}',
        '{"id": "e", "split"',
    ]
    (small / "chains.jsonl").write_text("\n".join(lines))
    with pytest.raises(ManifestError) as caught:
        load(small, chains="chains.jsonl")
    assert [p.place for p in caught.value.problems] == ["line 2", "line 3, key split", "line 4", "line 5"]
    assert "no caption for 't0.jpg' -> 't2.jpg'" in str(caught.value)
