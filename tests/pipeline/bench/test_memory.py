"""The memory task: its bounds are right, its ablations take away what they say, and the model needs its state."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from pipeline.bench import memory
from pipeline.training.models import build_model

D = 8
OPTIONS = {"stages": 2, "slots": 3, "hidden": 5, "init": "symmetry-breaking"}


def test_the_bounds_are_those_of_the_gallery() -> None:
    """Counted out: the items that fit what is known, one of which is right."""
    task = memory.RecallTask(3, D, 0.1, seed=0)
    items = [tuple(item) for item in task.items.tolist()]
    assert sorted(items) == sorted(itertools.product(range(3), repeat=4))
    bounds = task.bounds()
    for name, known in (
        ("chance", lambda item: 0),
        ("best from the last turn alone", lambda item: item[-1]),
        ("best from the values without their order", lambda item: tuple(sorted(item))),
        ("all four turns", lambda item: item),
    ):
        for k in (1, 5):
            alike = [sum(known(other) == known(item) for other in items) for item in items]
            expected = 100 * sum(min(k, n) / n for n in alike) / len(items)
            assert bounds[name][f"R@{k}"] == pytest.approx(expected)


def test_targets_add_up_over_the_turns_and_the_split_shares_no_item() -> None:
    task = memory.RecallTask(4, D, 0.0, seed=1)
    assert len(task.seen) == 192 and len(task.unseen) == 64
    assert not set(task.seen.tolist()) & set(task.unseen.tolist())
    features, wanted = task.sessions(task.unseen, 10, seed=2)
    assert set(wanted.tolist()) <= set(task.unseen.tolist())
    queries, targets, lengths = features.batch(torch.arange(10))
    torch.testing.assert_close(targets[:, -1], task.gallery[wanted])
    assert (lengths == 4).all()
    for session, item in enumerate(task.items[wanted].tolist()):
        for n in range(4):
            torch.testing.assert_close(queries[session, n], task.said[item[n]])  # no noise here
            total = sum(task.said[item[m]] + task.meant[m, item[m]] for m in range(n + 1))
            torch.testing.assert_close(targets[session, n], total / total.norm())
    again, _ = memory.RecallTask(4, D, 0.0, seed=1).sessions(task.unseen, 10, seed=2)
    assert torch.equal(again.queries, features.queries)


def outputs(memory_carries: bool, controller_carries: bool, queries: torch.Tensor) -> torch.Tensor:
    model = memory.build_ablated(OPTIONS, D, 3, memory_carries, controller_carries).double().eval()
    with torch.no_grad():
        for number, value in enumerate(model.state_dict().values()):
            value.copy_(
                torch.randn(value.shape, generator=torch.Generator().manual_seed(number), dtype=value.dtype).abs()
            )
    return model(queries, torch.full((len(queries),), queries.shape[1])).detach()


def test_an_ablation_cuts_what_it_says() -> None:
    queries = torch.randn(3, 4, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    changed = queries.clone()
    changed[:, 0] += 1.0
    for carries in itertools.product((True, False), repeat=2):
        same = torch.allclose(outputs(*carries, queries)[:, -1], outputs(*carries, changed)[:, -1], rtol=0, atol=1e-12)
        assert same == (carries == (False, False)), carries
    found = {carries: outputs(*carries, queries)[:, -1] for carries in itertools.product((True, False), repeat=2)}
    for one, other in itertools.combinations(found, 2):
        assert not torch.allclose(found[one], found[other])
    torch.testing.assert_close(outputs(True, True, queries)[:, 0], outputs(False, False, queries)[:, 0])


def test_nothing_cut_is_the_registered_model() -> None:
    whole, cut = build_model("cm_ntm", OPTIONS, D, 3), memory.build_ablated(OPTIONS, D, 3, True, True)
    queries = torch.randn(3, 4, D)
    assert torch.equal(whole(queries, torch.full((3,), 4)), cut(queries, torch.full((3,), 4)))


def test_figures_and_table() -> None:
    told: list[str] = []
    result = memory.run(seeds=(0, 1), epochs=1, sessions=70, values=2, dim=6, hidden=3, progress=told.append)
    assert told[0] == "seed 0: CM-NTM" and len(told) == 2 * len(result["scores"])
    json.dumps(result, allow_nan=False)
    assert set(result["scores"]) == {*memory.ABLATIONS, *memory.BASELINES}
    assert all(
        len(seeds) == 2 and 0 <= s["R@1"] <= s["R@5"] <= 100 for seeds in result["scores"].values() for s in seeds
    )
    text = memory.render(result)
    assert "(best from the last turn alone)" in text and "CM-NTM, no state" in text and "±" in text


@pytest.mark.slow
def test_the_model_needs_its_state() -> None:
    """Wide margins around one seed's 42, 42 and 2 percent after five epochs."""
    names = ("CM-NTM", "CM-NTM, controllers reset each turn", "CM-NTM, no state")
    result = memory.run(seeds=(0,), epochs=5, models=names)
    whole, memory_alone, nothing = (result["scores"][name][0]["R@1"] for name in names)
    last_turn = result["bounds"]["best from the last turn alone"]["R@1"]
    unordered = result["bounds"]["best from the values without their order"]["R@1"]
    assert whole > unordered and memory_alone > unordered  # better than any model that forgets the order
    assert nothing < 3 * last_turn < unordered
