"""The real Multi-turn FashionIQ, read once."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.datasets import datasets
from manifests.schema import Dataset


@pytest.fixture(scope="session")
def mt_fashioniq(shared_data: Path) -> Dataset:
    source = datasets.get("mt_fashioniq")
    return source.load(source.Options(captions="blip2_captions", attributes=True), shared_data)
