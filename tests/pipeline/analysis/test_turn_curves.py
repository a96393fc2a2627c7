"""`turns` on a trained spec: the last turn is the evaluation, in tables, JSON and a figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manifests.schema import Dataset, Turn
from tests.caption_project import CAPTIONS, FAST, call, caption_project
from tests.worlds import world

SPEC = f"""
name = "words"
{CAPTIONS}{FAST}
[models.avg]
[models.cat]
[models.lstm]
hidden = 8
"""


def of_three_turns() -> Dataset:
    dataset = world()
    sessions = (
        s.model_copy(update={"turns": (Turn(reference=s.target, captions=(f"less {n}",)), *s.turns)})
        for n, s in enumerate(dataset.sessions)
    )
    return dataset.model_copy(update={"sessions": tuple(sessions)})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = caption_project(tmp_path_factory.mktemp("turns"), "words", SPEC)
    done = call(made, "run", str(made / "words.toml"))
    assert done.exit_code == 0, done.output
    return made


def test_the_last_turn_is_the_evaluation(project: Path) -> None:
    spec = str(project / "words.toml")
    figure = project / "turns.png"
    done = call(project, "turns", spec, "-k", "5", "--file", str(figure), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["sessions"], found["turns"]) == (30, 2)
    evaluated = {s["model"]: s for s in json.loads(call(project, "evaluate", spec, "--json").stdout)}
    for entry in found["models"]:
        metrics = evaluated[entry["model"]]["metrics"]["all"]
        pooled = sum(metrics[c]["R@5"] * metrics[c]["n"] for c in ("dress", "shirt")) / 30
        assert entry["curves"]["R@5"][-1] == pytest.approx(pooled)
        assert entry["first"] == 1
    assert figure.read_bytes().startswith(b"\x89PNG")
    text = call(project, "turns", spec).stdout
    assert "R@10, after the turn, %" in text and text.count("\ncat ") == 3


def test_cat_is_ranked_after_every_turn_once_the_prefixes_are_encoded(tmp_path: Path) -> None:
    project = caption_project(tmp_path, "words", SPEC, of_three_turns())
    spec = str(project / "words.toml")
    assert call(project, "run", spec).exit_code == 0
    before = call(project, "turns", spec, "--model", "cat", "--model", "avg", "--json")
    assert "--set prefixes=true" in before.stderr and "--set prefixes=true" not in before.stdout
    done = call(project, "extract", spec, "--set", "prefixes=true")
    assert done.exit_code == 0 and call(project, "fit-composer", spec, "--set", "prefixes=true").exit_code == 0
    after = call(project, "turns", spec, "--model", "cat", "--model", "avg", "--json")
    assert "prefixes" not in after.stderr
    (old, avg), (cat, same) = (json.loads(found.stdout)["models"] for found in (before, after))
    assert avg == same  # the other models' runs are those of before
    assert (cat["first"], len(cat["curves"]["R@5"])) == (1, 3)
    for metric in ("R@1", "R@5", "R@10"):
        assert cat["curves"][metric][0] == avg["curves"][metric][0]  # after one turn, both rank by its query
        assert cat["curves"][metric][-1] == old["curves"][metric][-1]


def test_clean_splits_and_removed_references_have_results_of_their_own(project: Path) -> None:
    spec = str(project / "words.toml")
    whole = {path: path.read_bytes() for path in project.glob("out/runs/*/*/*/results.h5")}
    assert len(whole) == 3
    for change in ("dataset.protocol=clean-test", "references=removed"):
        if "protocol" in change:
            assert call(project, "extract", spec, "--set", change).exit_code == 0
            assert call(project, "fit-composer", spec, "--set", change).exit_code == 0
        done = call(project, "evaluate", spec, "--set", change, "--model", "avg", "--json")
        assert done.exit_code == 0, done.output
        (summary,) = json.loads(done.stdout)
        assert summary["references"] == ("removed" if "references" in change else "kept")
    names = sorted(path.parent.name for path in project.glob("out/runs/world/avg/*/views/*/results.h5"))
    assert names == ["clean-test", "no-references"]
    assert all(path.read_bytes() == data for path, data in whole.items())
    assert "evaluated" in call(project, "status", spec).stdout
