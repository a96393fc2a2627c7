"""Parts of other installed packages are found by entry points, and checked as the project's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from manifests.datasets import datasets
from manifests.errors import ManifestError
from pipeline.composition.composers import composers
from pipeline.extraction.extractors import extractors
from pipeline.training.models import build_model, models

POINTS = """
[fashion_ntm.models]
halving = fashion_plugin.halving
last = fashion_plugin.last
renamed = fashion_plugin.halving
gone = fashion_plugin.gone
[fashion_ntm.datasets]
nothing = fashion_plugin.nothing
"""
HALVING = """
from pipeline.training.models.base import MemoryModel


class Halving(MemoryModel):
    title = "Half of the last turn"
    trainable = False

    def _forward(self, queries, lengths):
        return queries / 2
"""
NOTHING = """
from manifests.datasets.base import DatasetSource


class Nothing(DatasetSource):
    title = "No data"

    @classmethod
    def read(cls, options, data, problems):
        problems.add("", "there is none")
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, about = tmp_path / "fashion_plugin", tmp_path / "fashion_plugin-1.0.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").write_text("")
    (package / "halving.py").write_text(HALVING)
    (package / "nothing.py").write_text(NOTHING)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fashion-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("fashion_plugin")]:
        monkeypatch.delitem(sys.modules, name)


def test_a_plugin_is_a_part_as_any_other(plugin: None) -> None:
    assert "halving" in models.names() and "nothing" in datasets.names()
    model = build_model("halving", {}, 4)
    assert model.name == "halving"
    assert torch.equal(model(torch.ones(1, 2, 4), torch.tensor([2])), torch.full((1, 2, 4), 0.5))
    with pytest.raises(ManifestError, match="there is none"):
        datasets.get("nothing").load(datasets.get("nothing").Options(), Path("."))


def test_a_plugin_does_not_replace_a_part_of_the_project(plugin: None) -> None:
    assert models.get("last").__module__ == "pipeline.training.models.last"


def test_bad_plugins_say_what_to_write(plugin: None) -> None:
    with pytest.raises(ManifestError, match="does not name a module renamed"):
        models.get("renamed")
    with pytest.raises(ManifestError, match="cannot be imported"):
        models.get("gone")
    with pytest.raises(ManifestError, match="did you mean 'halving'"):
        models.get("halvin")


def test_without_plugins_nothing_is_added() -> None:
    for registry in (models, datasets, composers, extractors):
        assert registry.plugins() == {} and registry.group.startswith("fashion_ntm.")
