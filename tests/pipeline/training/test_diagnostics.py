"""The diagnostics say what they define, at states where the answer is known, and leave the model as it was."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

from manifests.schema import Training
from pipeline.training.diagnostics import diagnose, entropy, row_spread
from pipeline.training.errors import TrainingError
from pipeline.training.fit import fit
from pipeline.training.losses import turnwise_cross_entropy
from pipeline.training.models import build_model
from pipeline.training.models.cm_ntm import CMNTM
from tests.pipeline.training.sessions import cumulative

C, N, T = 3, 4, 3
FEATURES = cumulative(20, turns=T, width=6)
INDEX = torch.arange(12)


def a_model(init: str = "paper", **options: object) -> CMNTM:
    return build_model("cm_ntm", {"stages": C, "slots": N, "hidden": 5, "init": init} | options, 6)


def test_row_spread_at_known_memories() -> None:
    equal, zero = torch.ones(N, 6) * 3e-7, torch.zeros(N, 6)
    assert row_spread(equal) == pytest.approx(0, abs=1e-6) and row_spread(zero) == 0
    assert row_spread(torch.eye(N)) == pytest.approx(math.sqrt(1 - 1 / N))
    assert row_spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(1)
    rows = torch.randn(2, N, 6)
    torch.testing.assert_close(row_spread(rows * 1e3), row_spread(rows))


def test_entropy_at_known_weights() -> None:
    assert entropy(torch.tensor([0.0, 1.0, 0.0])) == 0
    assert entropy(torch.full((N,), 1 / N)) == pytest.approx(math.log(N))


@pytest.mark.parametrize("training", [True, False])
def test_diagnosis_has_every_figure_and_changes_nothing(training: bool) -> None:
    model = a_model(dropout=0.3).train(training)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = diagnose(model, FEATURES, INDEX)
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found["slots"] == N
    assert all(len(turns) == T + 1 for turns in found["row_spread"]) and len(found["row_spread"]) == C
    for head in ("read_entropy", "write_entropy"):
        assert len(found[head]) == C
        assert all(len(turns) == T and 0 <= min(turns) <= max(turns) <= math.log(N) + 1e-6 for turns in found[head])
    assert all(len(stages) == C and min(stages) >= 0 for stages in found["gradient"].values())
    assert model.training == training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert diagnose(model, FEATURES, INDEX) == found


def test_the_gradient_is_that_of_a_training_step() -> None:
    model, setting = a_model("symmetry-breaking").train(), Training(scale=7.0, padding="mask")
    found = diagnose(model, FEATURES, INDEX, setting)["gradient"]
    queries, targets, lengths = FEATURES.batch(INDEX)
    turnwise_cross_entropy(model(queries, lengths), targets, lengths, 7.0).backward()
    for stage in range(C):
        gradient = model.stages[stage].heads.weight.grad
        both_keys = torch.cat([gradient[:6], gradient[12:18]])
        assert found["key"][stage] == pytest.approx(float(both_keys.norm()), rel=1e-4)
        assert found["addressing"][stage] == pytest.approx(float(gradient[:24].norm()), rel=1e-4)
        assert found["content"][stage] == pytest.approx(float(gradient[24:].norm()), rel=1e-4)
        parts = [found[name][stage] ** 2 for name in ("key", "strength", "gate", "shift", "sharpening")]
        assert sum(parts) == pytest.approx(found["addressing"][stage] ** 2)


def test_the_public_start_is_symmetric_and_the_variant_is_not() -> None:
    paper, broken = (diagnose(a_model(init).double(), double(), INDEX) for init in ("paper", "symmetry-breaking"))
    for stage in range(C):
        assert paper["row_spread"][stage][0] < 1e-9 and max(paper["row_spread"][stage]) < 1e-3
        assert min(broken["row_spread"][stage][:1]) > 0.5
        assert paper["read_entropy"][stage][0] == pytest.approx(math.log(N), rel=1e-3)
        assert paper["gradient"]["key"][stage] < 1e-3 * broken["gradient"]["key"][stage]


def double() -> object:
    from dataclasses import replace

    return replace(FEATURES, queries=FEATURES.queries.double(), targets=FEATURES.targets.double())


def test_it_fits_between_the_epochs_of_a_training_and_does_not_change_it() -> None:
    losses = []
    for diagnosing in (False, True):
        model = a_model()
        losses.append([])
        for metrics in fit(model, FEATURES, Training(epochs=3, batch_size=8)):
            losses[-1].append(metrics["loss"])
            if diagnosing:
                diagnose(model, FEATURES, INDEX)
    assert losses[0] == losses[1]


def test_a_model_without_addressed_memories_is_refused() -> None:
    with pytest.raises(TrainingError, match="lstm has no addressed memory"):
        diagnose(build_model("lstm", {}, 6), FEATURES, INDEX)
