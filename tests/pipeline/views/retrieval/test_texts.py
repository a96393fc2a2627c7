"""A model that reads the turns' texts beside f_qry answers everywhere that the others do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.jobs.experiment import Experiment
from pipeline.jobs.stage2 import train
from pipeline.views.report.order import interactive_order, logged_order
from pipeline.views.retrieval.queries import Queries
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import trained_runs, turn_outputs
from pipeline.views.serve.run import open_engine
from tests.pipeline.small_demo import Project


@pytest.fixture(scope="module")
def told(demo: Project) -> Project:
    """The small demo with one more model."""
    width = demo.workspace.backbone(demo.spec, demo.dataset).tables["text"].dim
    spec = demo.spec.model_copy(update={"models": {"gru": {"hidden": 4, "texts": width}}})
    list(train(Experiment(spec, demo.dataset, demo.workspace, "cpu")))
    return replace(demo, spec=spec)


def test_a_dialogue_gets_the_results_of_the_evaluation(told: Project) -> None:
    engine, bed = open_engine(told.experiment()), TestBed(told.experiment())
    (trained,) = trained_runs(bed.experiment)[0]
    top = bed.top(bed.finals(trained), 10)
    for number, session in list(enumerate(bed.sessions))[::7]:
        talk = engine.start(session.category, engine.numbers[session.turns[0].reference], ["gru"])
        for turn in session.turns:
            engine.choose(talk, engine.numbers[turn.reference])
            engine.say(talk, turn.text)
        found = [image for image, _ in engine.results(talk, 10)["gru"]]
        assert found == [bed.image(number, row) for row in top[number]], session.id


def test_turns_are_permuted_with_their_texts(told: Project) -> None:
    """One session in reverse is a session whose queries and texts are those of the turns from last to first."""
    bed = TestBed(told.experiment())
    (trained,) = trained_runs(bed.experiment)[0]
    row = logged_order(bed, [trained], 5).rows["gru"]
    turned = []
    for number, length in enumerate(bed.lengths.tolist()):
        queries, _, _ = bed.features.batch(torch.tensor([number]), texts=True)
        turned.append(trained.model(queries[:, :length].flip(1), torch.tensor([length]))[0, -1].detach())
    ranks, many = bed.ranks(torch.stack(turned)), bed.lengths > 1
    assert row["R@5 reversed"].value == pytest.approx(100 * float(np.mean(ranks[many] <= 5)))
    played = interactive_order(bed, [trained], Queries(told.spec, told.dataset, told.workspace), 5)
    assert not played.why_not and 0 < played.rows["gru"]["final overlap@5"].value <= 100


def test_the_outputs_of_all_turns_are_the_models_own(told: Project) -> None:
    bed = TestBed(told.experiment())
    (trained,) = trained_runs(bed.experiment)[0]
    queries, _, lengths = bed.features.batch(torch.arange(4), texts=True)
    given = turn_outputs(trained, bed.features.subset(range(4)))
    whole = trained.model(queries, lengths)
    for n, length in enumerate(lengths.tolist()):
        assert torch.allclose(given[n, :length], whole[n, :length], atol=1e-6)
