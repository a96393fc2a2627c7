"""The number of threads of a training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.core.device import cpu_threads, training_threads


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_training_has_one_thread_unless_it_is_told_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert (training_threads(), training_threads(3)) == (1, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert (training_threads(), training_threads(3)) == (2, 3)
    torch.set_num_threads(1)
    with pytest.raises(KeyError), cpu_threads(2):
        assert torch.get_num_threads() == 2
        raise KeyError
    assert torch.get_num_threads() == 1
