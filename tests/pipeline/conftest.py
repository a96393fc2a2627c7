"""What the tests of the report, the pages and the study share: small worlds and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.pipeline.small_demo import Project, chromium, small_demo, small_words


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_demo(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_words(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found
