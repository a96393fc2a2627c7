"""A folder as a user has it: the small world of captions, a tiny sentence encoder, and a spec."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from cli import main
from manifests.datasets.jsonl import export
from manifests.schema import Dataset
from tests.pipeline.extraction.conftest import save_bert
from tests.worlds import world

# Dataset, extractor and the beginning of the composer's table, which a spec may go on with.
CAPTIONS = """
[dataset]
name = "jsonl"
folder = "world"
[extractor]
name = "caption"
model = "{model}"
[composer]
name = "gated"
hidden = 8
"""
# The rest of a spec that fits in a second, up to its models.
FAST = """
[composer.fit]
epochs = 1
[training]
epochs = 1
batch_size = 20
"""


def caption_project(folder: Path, name: str, spec: str, dataset: Dataset | None = None) -> Path:
    """``folder`` with data/world, a model and NAME.toml, in whose text ``{model}`` is the model's folder."""
    export(dataset or world(), folder / "data" / "world")
    save_bert(folder / "model")
    (folder / f"{name}.toml").write_text(spec.format(model=folder / "model"), encoding="utf-8")
    return folder


def call(project: Path, command: str, *words: str, out: str = "out") -> Result:
    """A command as the user types it, on the folders of ``project``."""
    return CliRunner().invoke(main, [command, *words, "--data", str(project / "data"), "--out", str(project / out)])
