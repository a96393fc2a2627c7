from __future__ import annotations

from pathlib import Path

import pytest

from cache import Store
from manifests.schema import Dataset
from tests.worlds import world, write_backbone


@pytest.fixture
def dataset() -> Dataset:
    return world()


@pytest.fixture
def backbone(tmp_path: Path, dataset: Dataset) -> Store:
    return write_backbone(tmp_path / "stores" / "world" / "tiny", dataset)
