"""The matrix of stage 2: every input that can change a number misses what was made of it, every other input hits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from manifests.identity import digest
from manifests.schema import PARTS, Component, Dataset, Gallery, Image, RunSpec, Training, Turn, Validation
from manifests.views import WHOLE, View
from pipeline.core.workspace import Workspace, composer_identity
from pipeline.jobs.identities import RunIdentities, make_run
from pipeline.jobs.stage1 import extract_spec, fit_composer_spec
from tests.pipeline.extraction.conftest import save_bert
from tests.worlds import world

LOSS = Component(name="triplet")
OTHER = {  # another value of every training setting
    "epochs": 3,
    "batch_size": 20,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "scale": 20.0,
    "padding": "mask",
    "clip_norm": 1.0,
    "early_stopping": 2,
    "loss": LOSS,
    "negatives": "static",
    "same_target": "ignore",
    "hard_groups": 2,
    "uncertainty": 0.1,
    "recombine": 0.5,
    "drop_turns": 0.5,
    "ema": 0.9,
    "matmul": "high",
}
Change = Callable[[RunSpec, Dataset], tuple[RunSpec, Dataset]]


@dataclass(frozen=True)
class Outputs:
    """Identities of what stage 2 makes: 12 digits each, by name."""

    composer: str
    run: str
    untrained: str
    evaluation: str
    view: str


EXTRACTED: list[tuple[Any, ...]] = []  # what stage 1 was made of last in this module's workspace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identities")
    save_bert(folder / "model")
    return folder


def base(place: Path) -> tuple[RunSpec, Dataset]:
    spec = RunSpec(
        name="s",
        dataset=Component(name="jsonl"),
        extractor=Component(name="caption", model=str(place / "model")),
        composer=Component(name="gated", dim=8, hidden=8, fit={"epochs": 1, "batch_size": 64}),
        training=Training(epochs=1, batch_size=30),
        validation=Validation(fraction=0.1),
        models={"lstm": {"hidden": 4}, "avg": {}},
    )
    return spec, world(("dress",))


def outputs(place: Path, spec: RunSpec, dataset: Dataset) -> Outputs:
    """Extract and compose for real, unless that was done last, then ask what the runs and evaluations would be."""
    workspace, reads = Workspace(place / "out"), (spec.extractor, spec.composer, spec.validation, dataset)
    if [reads] != EXTRACTED:
        if extract_spec(spec, dataset, workspace, "cpu", progress="silent").composed is None:
            fit_composer_spec(spec, dataset, workspace)
        EXTRACTED[:] = [reads]
    identities = RunIdentities(spec, dataset, workspace)
    run, untrained = make_run(spec, "lstm", spec.seeds[0]), make_run(spec, "avg", spec.seeds[0])

    def evaluation(view: View = WHOLE) -> str:
        return digest([identities.identity(run).id, identities.evaluation_identity(run, view)])[:12]

    return Outputs(
        digest(composer_identity(spec, dataset, workspace.backbone(spec, dataset)))[:12],
        identities.identity(run).id,
        identities.identity(untrained).id,
        evaluation(),
        evaluation(View(turns=2, last=1)),
    )


def of_spec(**changes: Any) -> Change:
    return lambda spec, data: (spec.model_copy(update=changes), data)


def of_data(change: Callable[[Dataset], Dataset]) -> Change:
    return lambda spec, data: (spec, change(data))


def caption_of(image: str) -> Change:
    """Another content of one image under its old id."""
    return of_data(
        lambda d: d.model_copy(update={"images": {**d.images, image: Image(id=image, caption="a green sleeve")}})
    )


def sessions(change: Callable[[list[Any]], list[Any]]) -> Change:
    return of_data(lambda d: d.model_copy(update={"sessions": tuple(change(list(d.sessions)))}))


def feedback(split: str) -> Change:
    def change(found: list[Any]) -> list[Any]:
        n = next(i for i, s in enumerate(found) if s.split == split)
        turn = Turn(reference=found[n].turns[0].reference, captions=("more floral with dots",))
        return [*found[:n], found[n].model_copy(update={"turns": (turn, *found[n].turns[1:])}), *found[n + 1 :]]

    return sessions(change)


def galleries(change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Change:
    def changed(d: Dataset) -> Dataset:
        made = [
            Gallery(category=g.category, split=g.split, images=change(g.images)) if g.split == "test" else g
            for g in d.galleries
        ]
        return d.model_copy(update={"galleries": tuple(made)})

    return of_data(changed)


def renamed(d: Dataset) -> Dataset:
    """The same content under other ids of images and sessions."""
    name = {i: f"x{n}" for n, i in enumerate(d.images)}
    turned = [
        s.model_copy(
            update={
                "id": f"s-{s.id}",
                "target": name[s.target],
                "turns": tuple(t.model_copy(update={"reference": name[t.reference]}) for t in s.turns),
            }
        )
        for s in d.sessions
    ]
    return d.model_copy(
        update={
            "images": {name[i]: image.model_copy(update={"id": name[i]}) for i, image in d.images.items()},
            "sessions": tuple(turned),
            "galleries": tuple(g.model_copy(update={"images": tuple(name[i] for i in g.images)}) for g in d.galleries),
        }
    )


ALL = ("composer", "run", "untrained", "evaluation", "view")
TRAINED = ("run", "evaluation", "view")
EVALUATIONS = ("evaluation", "view")
MISSES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "content of a train image": (caption_of("dress/0-0"), ALL),
    "feedback of a train session": (feedback("train"), ALL),
    "feedback of a test session": (feedback("test"), EVALUATIONS),
    "order of the train sessions": (sessions(lambda s: [s[1], s[0], *s[2:]]), ALL),
    "a train session less": (sessions(lambda s: s[1:]), ALL),
    "a test session less": (sessions(lambda s: s[:-1]), EVALUATIONS),
    "test targets rotated": (
        sessions(
            lambda s: (
                s[:45]
                + [a.model_copy(update={"target": b.target}) for a, b in zip(s[45:], [*s[46:], s[45]], strict=True)]
            )
        ),
        EVALUATIONS,
    ),
    "a gallery member less": (galleries(lambda images: tuple(i for i in images if i != "dress/5-4")), EVALUATIONS),
    "a gallery member twice": (galleries(lambda images: (*images, images[0])), EVALUATIONS),
    "averaging": (of_data(lambda d: d.model_copy(update={"averaging": "sessions"})), EVALUATIONS),
    "name of a category": (
        of_data(
            lambda d: d.model_copy(
                update={
                    "sessions": tuple(s.model_copy(update={"category": "gown"}) for s in d.sessions),
                    "galleries": tuple(g.model_copy(update={"category": "gown"}) for g in d.galleries),
                }
            )
        ),
        ALL,  # the cut is drawn by category
    ),
    "validation fraction": (of_spec(validation=Validation(fraction=0.2)), ALL),
    "validation seed": (of_spec(validation=Validation(fraction=0.1, seed=1)), ALL),
    "seed": (of_spec(seeds=(1,)), TRAINED),
    "a model's option": (of_spec(models={"lstm": {"hidden": 5}, "avg": {}}), TRAINED),
    "a model's own training": (of_spec(models={"lstm": {"hidden": 4, "training": {"epochs": 4}}, "avg": {}}), TRAINED),
    "composer's options": (
        of_spec(composer=Component(name="gated", dim=8, hidden=9, fit={"epochs": 1, "batch_size": 64})),
        ALL,
    ),
    "composer's fit": (
        of_spec(composer=Component(name="gated", dim=8, hidden=8, fit={"epochs": 2, "batch_size": 64})),
        ALL,
    ),
    "composer's folds": (
        of_spec(composer=Component(name="gated", dim=8, hidden=8, folds=2, fit={"epochs": 1, "batch_size": 64})),
        ALL,
    ),
    "another composer": (of_spec(composer=Component(name="fusion")), ALL),
    "an extractor's option": (
        lambda s, d: (s.model_copy(update={"extractor": Component(**s.extractor.model_dump(), normalise=False)}), d),
        ALL,
    ),
} | {
    f"training.{name}": (
        lambda s, d, name=name, value=value: (
            s.model_copy(update={"training": s.training.model_copy(update={name: value})}),
            d,
        ),
        TRAINED,
    )
    for name, value in OTHER.items()
}


def moved_model(spec: RunSpec, data: Dataset) -> tuple[RunSpec, Dataset]:
    folder = Path(spec.extractor.options["model"])
    copied = folder.with_name("moved")
    if not copied.exists():
        shutil.copytree(folder, copied)
    return spec.model_copy(update={"extractor": Component(name="caption", model=str(copied))}), data


def touched_model(spec: RunSpec, data: Dataset) -> tuple[RunSpec, Dataset]:
    for file in Path(spec.extractor.options["model"]).iterdir():
        os.utime(file)
    return spec, data


HITS: dict[str, Change] = {
    "a model folder that moved": moved_model,
    "times of the model files": touched_model,
    "ids of images and sessions": of_data(renamed),
    "order of a gallery": galleries(lambda images: images[::-1]),
    "name of the dataset": of_data(lambda d: d.model_copy(update={"name": "elsewhere"})),
    "notes and title": lambda s, d: (
        s.model_copy(update={"title": "another"}),
        d.model_copy(update={"notes": ("read again",)}),
    ),
    "an image outside of all sessions and galleries": of_data(
        lambda d: d.model_copy(update={"images": {**d.images, "more": Image(id="more", caption="a plain collar")}})
    ),
    "another model beside it": of_spec(models={"lstm": {"hidden": 4}, "avg": {}, "last": {}}),
    "more seeds": of_spec(seeds=(0, 1)),
}


def test_every_training_setting_is_in_the_matrix() -> None:
    assert OTHER.keys() == Training.model_fields.keys() and set(PARTS) <= OTHER.keys()
    assert all(getattr(Training(), name) != value for name, value in OTHER.items())


@pytest.fixture(scope="module")
def before(place: Path) -> Outputs:
    return outputs(place, *base(place))


@pytest.mark.parametrize("name", MISSES)
def test_an_input_that_can_change_a_number_misses(place: Path, before: Outputs, name: str) -> None:
    change, what = MISSES[name]
    after = outputs(place, *change(*base(place)))
    assert {n for n in ALL if getattr(before, n) != getattr(after, n)} == set(what)


@pytest.mark.parametrize("options", [{"shard_rows": 7}, {"batch_size": 3}, {"workers": 0}, {"precision": "fp32"}])
def test_how_features_are_extracted_changes_no_number(
    place: Path, before: Outputs, tmp_path: Path, options: dict[str, Any]
) -> None:
    spec, data = base(place)
    workspace = Workspace(tmp_path / "out")
    extract_spec(spec, data, workspace, "cpu", progress="silent", **options)
    fit_composer_spec(spec, data, workspace)
    identities = RunIdentities(spec, data, workspace)
    assert identities.identity(make_run(spec, "lstm", 0)).id == before.run


@pytest.mark.parametrize("name", HITS)
def test_an_input_that_changes_no_number_hits(place: Path, before: Outputs, name: str) -> None:
    assert outputs(place, *HITS[name](*base(place))) == before


def test_the_first_inputs_still_have_their_outputs(place: Path, before: Outputs) -> None:
    assert outputs(place, *base(place)) == before
