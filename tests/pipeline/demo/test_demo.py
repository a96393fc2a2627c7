"""The shipped demo model, and how it is built."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.demo import build
from pipeline.demo.examples import examples, full_description, triplets


def test_the_shipped_model_is_small_and_has_a_card() -> None:
    files = [p for p in build.SHIPPED.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 8_000_000
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".md"}
    card = (build.SHIPPED / build.CARD).read_text(encoding="utf-8")
    assert "Apache-2.0" in card and all(
        f"| {name} | {value:.1f} |" in card for name, value in build.shipped_score().items()
    )


@pytest.mark.slow
def test_the_shipped_model_has_the_score_on_its_card() -> None:
    found = build.score(build.SHIPPED)
    for name, value in build.shipped_score().items():
        assert found[name] == pytest.approx(value, abs=1.0)


@pytest.mark.slow
def test_a_build_from_nothing_learns_and_leaves_a_whole_model(tmp_path: Path) -> None:
    towers = build.TOWERS.model_copy(update={"epochs": 2})
    lines: list[str] = []
    found = build.build(tmp_path, lines.append, count=120, towers=towers)
    losses = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("towers")]
    assert losses[1] < losses[0]
    assert build.score(tmp_path) == found
    assert (tmp_path / build.COMPOSER / "composer.json").is_file()


def test_examples_are_groups_of_look_alikes_and_the_same_for_the_same_seed() -> None:
    one, two = examples(24, 32, "a"), examples(24, 32, "a")
    assert [(e.garment, e.texts) for e in one] == [(e.garment, e.texts) for e in two]
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(one, two, strict=True))
    assert [(e.garment) for e in one] != [e.garment for e in examples(24, 32, "b")]
    for number in range(4):
        members = [e for e in one if e.group == number]
        assert len(members) == 6 and len({e.category for e in members}) == 1
        for e in members:
            nearest = min(sum(e.garment[f] != o.garment[f] for f in e.garment) for o in members if o is not e)
            assert nearest <= 4  # an accent colour may come or go with what carries it
        assert len({tuple(e.garment.items()) for e in members}) >= 4


def test_triplets_stay_in_their_group_and_ask_for_few_changes() -> None:
    found = examples(60, 32, "t")
    made = triplets(found, "t")
    assert made and all(found[a].group == found[b].group and a != b and text for a, text, b in made)
    for a, _, b in made:
        assert 1 <= sum(found[a].garment[f] != v for f, v in found[b].garment.items()) <= 3


def test_a_full_description_names_the_colour(tmp_path: Path) -> None:
    example = examples(6, 32, "d")[0]
    assert len(full_description(example.category, example.garment, random.Random(0)).split()) > 5
