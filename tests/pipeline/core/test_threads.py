"""The number of threads: a fixed one for trainings, a measured one for other calls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.core.threads import candidates, choose_threads, cpu_threads, training_threads


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_fastest_number_is_chosen_and_set() -> None:
    seen: list[int] = []
    choice = choose_threads(lambda: seen.append(torch.get_num_threads()), among=(1, 2), repeats=3)
    assert set(seen) == {1, 2} and set(choice.milliseconds) == {1, 2}
    assert torch.get_num_threads() == choice.threads
    assert str(choice).startswith(f"{choice.threads} CPU thread") and "ms" in str(choice)


def test_a_pinned_number_is_not_measured() -> None:
    def never() -> None:
        raise AssertionError("measured")

    choice = choose_threads(never, among=(1,))
    assert choice.threads == torch.get_num_threads() == 1 and str(choice) == "1 CPU thread"


def test_candidates_respect_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert candidates() == (1,)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert candidates()[0] == 1 and list(candidates()) == sorted(set(candidates()))


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
