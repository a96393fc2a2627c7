"""The cascade against the paper's equations written out session by session, and its own rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

from pipeline.training.errors import TrainingError
from pipeline.training.models import build_model
from pipeline.training.models._ntm import READ, WRITE
from pipeline.training.models._stage import TRACKED_TURNS
from pipeline.training.models.cm_ntm import CMNTM

C, N, M, K, D, B, T = 3, 4, 5, 2, 6, 7, 3  # all sizes differ


def generic(stages: int = C, dim: int = D, seed: int = 0) -> CMNTM:
    """Double precision with random weights, memories, head positions and statistics."""
    model = build_model("cm_ntm", {"stages": stages, "slots": N, "width": M, "hidden": K}, dim).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(noise.square() + 0.3 if name.endswith("running_var") else 0.7 * noise)
    return model


def a_batch(batch: int = B, dim: int = D, turns: int = T) -> tuple[torch.Tensor, torch.Tensor]:
    queries = torch.randn(batch, turns, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return queries, torch.full((batch,), turns)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def spelled_out(model: CMNTM, queries: np.ndarray) -> np.ndarray:
    """Paper section 3.1 and Graves et al. 2014, one session and one number at a time, in training mode."""
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    stages, dim = len(model.stages), queries.shape[2]
    out = np.empty_like(queries)
    derived = np.empty((*queries.shape[:2], stages, dim))
    for n in range(queries.shape[1]):
        derived[:, n, stages - 1] = queries[:, n]
        for c in range(stages - 1):
            rows = slice(c * dim, (c + 1) * dim)
            values = queries[:, n] @ weights["derived.weight"][rows].T
            values = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)
            derived[:, n, c] = values * weights["derived.gain"][rows] + weights["derived.bias"][rows]
    for b in range(len(queries)):
        part = lambda c, name: weights[f"stages.{c}.{name}"]  # noqa: E731
        memory = [part(c, "memory").copy() for c in range(stages)]
        read = [part(c, "read") for c in range(stages)]
        hidden, cell = [part(c, "hidden") for c in range(stages)], [part(c, "cell") for c in range(stages)]
        addressing = [[softmax(part(c, "start")[h]) for h in range(2)] for c in range(stages)]
        for n in range(queries.shape[1]):
            before = read[-1]  # r^0(n) = r^C(n-1)
            for c in range(stages):
                inputs = np.concatenate([before, derived[b, n, c], read[c]])
                gates = part(c, "controller.weight_ih") @ inputs + part(c, "controller.bias_ih")
                gates = gates + part(c, "controller.weight_hh") @ hidden[c] + part(c, "controller.bias_hh")
                i, f, g, o = np.split(gates, 4)
                cell[c] = sigmoid(f) * cell[c] + sigmoid(i) * np.tanh(g)
                hidden[c] = sigmoid(o) * np.tanh(cell[c])
                raw = part(c, "heads.weight") @ hidden[c] + part(c, "heads.bias")
                width = memory[c].shape[1]
                for h in range(2):
                    own = raw[h * (width + 6) : (h + 1) * (width + 6)]
                    key, beta = own[:width], math.log1p(math.exp(own[width]))
                    gate, shift = sigmoid(own[width + 1]), softmax(own[width + 2 : width + 5])
                    gamma = 1 + math.log1p(math.exp(own[width + 5]))
                    cosine = memory[c] @ key / np.linalg.norm(key) / np.linalg.norm(memory[c], axis=1)
                    mixed = gate * softmax(beta * cosine) + (1 - gate) * addressing[c][h]
                    slots = len(mixed)
                    turned = [
                        shift[0] * mixed[(s - 1) % slots] + shift[1] * mixed[s] + shift[2] * mixed[(s + 1) % slots]
                        for s in range(slots)
                    ]
                    addressing[c][h] = np.array(turned) ** gamma / (np.array(turned) ** gamma).sum()
                read[c] = addressing[c][0] @ memory[c]
                erase, add = sigmoid(raw[2 * (width + 6) : -width]), raw[-width:]
                memory[c] = memory[c] * (1 - np.outer(addressing[c][1], erase)) + np.outer(addressing[c][1], add)
                before = read[c]
            out[b, n] = weights["output.weight"] @ np.concatenate([hidden[-1], read[-1]]) + weights["output.bias"]
    return out


@pytest.mark.parametrize("stages", [1, 2, C])
def test_equals_the_papers_equations(stages: int) -> None:
    model, (queries, lengths) = generic(stages).train(), a_batch()
    found = model(queries, lengths).detach().numpy()
    np.testing.assert_allclose(found, spelled_out(model, queries.numpy()), rtol=1e-10, atol=1e-12)


def test_stepping_a_dialogue_gives_the_whole_sessions_outputs() -> None:
    turns = TRACKED_TURNS + 2
    model, (queries, lengths) = generic().eval(), a_batch(turns=turns)
    whole, state = model(queries, lengths), model.initial_state(B)
    for n in range(turns):
        output, state = model.step(queries[:, n], state)
        torch.testing.assert_close(output, whole[:, n])
    assert state.turn == turns
    with pytest.raises(TrainingError, match=r"model.eval\(\)"):
        model.train().step(queries[:, 0], model.initial_state(B))


def test_gradcheck_of_all_weights() -> None:
    model = generic(2, dim=3)
    queries, lengths = a_batch(4, dim=3, turns=2)
    fixed = dict(model.named_buffers())
    names, values = zip(*[(n, p.detach().requires_grad_()) for n, p in model.named_parameters()], strict=True)

    def outputs(queries: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return functional_call(model, fixed | dict(zip(names, values, strict=True)), (queries, lengths))

    assert torch.autograd.gradcheck(outputs, (queries.requires_grad_(), *values), fast_mode=True)


def test_initial_values_are_the_public_ones() -> None:
    model = build_model("cm_ntm", {"stages": 2, "slots": 16}, 32)
    stage = model.stages[0]
    bound = 5 / math.sqrt(3 * 32 + 100)
    assert stage.controller.weight_ih.shape == (400, 96) and not stage.controller.bias_ih.any()
    assert 0.98 * bound < stage.controller.weight_hh.abs().max() <= bound
    key, beta = stage.heads.weight[:32], stage.heads.weight[32:33]
    assert 0.98 < key.abs().max() / (1.4 * math.sqrt(6 / (100 + 32))) <= 1
    assert 0.9 < beta.abs().max() / (1.4 * math.sqrt(6 / (100 + 1))) <= 1
    assert 0.007 < stage.heads.bias.std() < 0.013
    assert (stage.memory == 1e-6).all() and not isinstance(stage.memory, torch.nn.Parameter)
    state = model.initial_state(3).stages[0]
    assert state.memory.shape == (3, 16, 32) and torch.allclose(state.weights, torch.tensor(1 / 16), atol=1e-5)
    learned = dict(model.named_parameters())
    assert {f"stages.0.{name}" for name in ("hidden", "cell", "read", "start")} <= set(learned)


def test_all_rows_start_equal_unless_the_symmetry_is_broken() -> None:
    """With equal rows the address hardly moves a gradient; the labeled variant lets it learn from the first step."""
    queries, lengths = a_batch()
    gradients = {}
    for init in ("paper", "symmetry-breaking", "addressed"):
        model = build_model("cm_ntm", {"stages": 1, "slots": N, "hidden": 8, "init": init}, D).double()
        model(queries, lengths).square().sum().backward()
        gradients[init] = float(model.stages[0].heads.weight.grad[:D].norm())  # rows of the read head's key
        assert ("stages.0.memory" in dict(model.named_parameters())) == (init != "paper")
    assert (
        gradients["paper"] < 1e-6 * gradients["symmetry-breaking"]
        and gradients["symmetry-breaking"] < gradients["addressed"]
    )


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_addressed_heads_start_as_a_list_of_the_turns(slots: int) -> None:
    """Turn n is written to slot n modulo N and nothing else changes; the read head prefers the row that equals its key."""
    torch.manual_seed(0)
    model = build_model("cm_ntm", {"stages": 2, "slots": slots, "width": 64, "init": "addressed"}, D).eval()
    queries, state = torch.nn.functional.normalize(torch.randn(B, 6, D), dim=-1), model.initial_state(B)
    for turn, query in enumerate(queries.unbind(1)):
        _, after = model.step(query, state)
        for before, stage in zip(state.stages, after.stages, strict=True):
            assert (stage.weights[:, WRITE].argmax(-1) == turn % slots).all() and stage.weights[:, WRITE].max() > 0.99
            others = [slot for slot in range(slots) if slot != turn % slots]
            torch.testing.assert_close(stage.memory[:, others], before.memory[:, others], atol=0.02, rtol=0.02)
            entropy = torch.special.entr(stage.weights[:, READ]).sum(-1)
            assert slots == 1 or (entropy < 0.97 * math.log(slots)).any()
        state = after


def test_each_turn_has_its_own_batch_statistics() -> None:
    model = generic().train()
    queries, _ = a_batch()
    queries = queries * torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)[:, None]
    for stage in (model.derived.gain, model.derived.bias):
        stage.data.fill_(1.0)
    derived = model.derived(queries)
    assert derived.shape == (B, T, C - 1, D)
    torch.testing.assert_close(derived.mean(0), torch.ones(T, C - 1, D, dtype=torch.float64))
    torch.testing.assert_close(
        derived.std(0, correction=0), torch.ones(T, C - 1, D, dtype=torch.float64), rtol=1e-2, atol=0
    )


def test_running_statistics_are_kept_for_each_turn_and_reused_beyond() -> None:
    model = generic().train()
    queries, _ = a_batch()
    model.derived.running_mean.zero_()
    model.derived(queries)
    means = torch.nn.functional.linear(queries, model.derived.weight).mean(0)
    torch.testing.assert_close(model.derived.running_mean[:T], 0.1 * means)
    torch.testing.assert_close(model.derived.running_mean[T:], (0.1 * means[-1]).expand(TRACKED_TURNS - T, -1))
    model.eval()
    one_by_one = torch.cat([model.derived(queries[:, n : n + 1], first_turn=n) for n in range(T)], 1)
    torch.testing.assert_close(one_by_one, model.derived(queries))
    more = queries.repeat(1, TRACKED_TURNS, 1)
    assert model.train().derived(more).shape[1] == T * TRACKED_TURNS  # more turns than positions


def test_a_training_batch_of_one_is_refused() -> None:
    queries, lengths = a_batch(1)
    with pytest.raises(TrainingError, match="at least two sessions"):
        generic().train()(queries, lengths)
    assert generic(1).train()(queries, lengths).shape == queries.shape  # C = 1 has no statistics


def test_feature_scales_stay_finite() -> None:
    for scale in (1e-3, 1.0, 1e3):
        model = build_model("cm_ntm", {"stages": 2, "hidden": 8}, D)
        queries, lengths = a_batch()
        loss = model(scale * queries.float(), lengths).square().sum()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
