"""One contract for all extractors: rows as declared, the same every time, and whatever else is in the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch

from manifests.identity import digest
from pipeline.extraction.extractors import extractors, load_extractor
from pipeline.extraction.extractors.base import Card, Extractor, ExtractorOptions

from .conftest import picture, spec_of
from .small import CASES, TEXTS

Rows = Callable[[list, list], np.ndarray]


MODELS = sorted(set(extractors.names()) - {"imported"})  # arrays made elsewhere are no model


QUICK = ("clip", "caption")
ONE_EACH = [
    pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow])
    for case in CASES
    if case not in ("clip-siglip", "sprc-spn4cir")  # as clip-naflex and sprc
]


@pytest.fixture(scope="module", params=CASES)
def extractor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    return CASES[request.param](tmp_path_factory.mktemp("model") / request.param)


def test_every_extractor_has_a_case() -> None:
    assert {case.partition("-")[0] for case in CASES} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_every_extractor_shows_its_cards(name: str) -> None:
    family = extractors.get(name)
    assert family.cards and all(isinstance(card, Card) for card in family.cards)
    for card in family.cards:
        about = card.as_dict()
        assert card.name and card.licence and card.source
        seen = name == "sprc" or card.name.startswith(("gme", "procir"))
        assert about["trained on FashionIQ triplets"] == ("yes" if seen else "no")
        assert set(card.dims) == set(family.tables) and all(d > 0 for d in card.dims.values())


def images_for(extractor: Extractor) -> list:
    return [picture(n, (30 + 7 * n, 50)) for n in range(5)] if extractor.reads == "pixels" else list(TEXTS)


def encoders(extractor: Extractor) -> dict[str, Rows]:
    made: dict[str, Rows] = {
        "image": lambda images, texts: extractor.encode_images(images),
        "text": lambda images, texts: extractor.encode_texts(texts),
        "target": lambda images, texts: extractor.encode_images(images),
        "query": extractor.encode_pairs,
    }
    return {table: made[table] for table in extractor.tables}


def test_rows_are_distinct_unit_vectors_of_the_declared_size(extractor: Extractor) -> None:
    assert set(extractor.card.dims or extractor.tables) == set(extractor.tables)
    for table, rows_of in encoders(extractor).items():
        rows = rows_of(images_for(extractor), TEXTS)
        assert rows.shape == (5, extractor.dim(table)) and rows.dtype == extractor.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1) + np.eye(5)
        assert distances.min() > 1e-4, table


def test_a_row_depends_on_its_item_alone(extractor: Extractor) -> None:
    images = images_for(extractor)
    for table, rows_of in encoders(extractor).items():
        alone = np.concatenate([rows_of([i], [t]) for i, t in zip(images, TEXTS, strict=True)])
        assert np.abs(rows_of(images, TEXTS) - alone).max() <= 1e-5, table
        assert np.abs(rows_of(images[::-1], TEXTS[::-1])[::-1] - alone).max() <= 1e-5, table
        np.testing.assert_array_equal(rows_of(images, TEXTS), rows_of(images, TEXTS))


def test_a_query_hears_both_its_image_and_its_text(extractor: Extractor) -> None:
    if "query" not in extractor.tables:
        pytest.skip("a dual encoder")
    a, b = images_for(extractor)[:2]
    rows = extractor.encode_pairs([a, a, b], ["red dress", "blue", "red dress"])
    assert np.linalg.norm(rows[0] - rows[1]) > 1e-4 and np.linalg.norm(rows[0] - rows[2]) > 1e-4


def test_prepared_items_give_the_same_rows(extractor: Extractor) -> None:
    """What worker threads hand over is what the model would have made of the item itself."""
    images = images_for(extractor)
    ready = [extractor.prepare(i) for i in images] if extractor.reads == "pixels" else extractor.prepare_texts(images)
    texts = extractor.prepare_texts(TEXTS)
    for rows_of in encoders(extractor).values():
        np.testing.assert_array_equal(rows_of(ready, texts), rows_of(images, TEXTS))


def test_identity_is_plain_and_stays(extractor: Extractor) -> None:
    before = extractor.semantic()
    json.dumps(before, allow_nan=False)
    next(iter(encoders(extractor).values()))(images_for(extractor), TEXTS)
    assert digest(extractor.semantic()) == digest(before) and len(before["weights"]) == 64
    options = extractor.options.model_dump(mode="json")
    again = load_extractor(spec_of(extractor.name, **options), "cpu")  # as a fresh process does, from the spec alone
    assert again.semantic() == before
    for rows_of, same in zip(encoders(extractor).values(), encoders(again).values(), strict=True):
        np.testing.assert_array_equal(rows_of(images_for(extractor), TEXTS), same(images_for(extractor), TEXTS))


ELSEWHERE = {"model", "tokenizer", "revision"}  # they name files; test_extractors.py changes those files


def another(extractor: Extractor, name: str) -> Any:
    """A valid value of an option that differs from the one in use, in effect too."""
    value, field = getattr(extractor.options, name), type(extractor.options).model_fields[name]
    if name == "clean":
        return "canonical"
    if name == "convention":
        return "qwen3vl" if extractor.convention == "gme" else "gme"  # type: ignore[attr-defined]
    if name == "fit":
        return {"seed": 1}
    if isinstance(value, str) or value is None:
        return next((v for v in get_args(field.annotation) if isinstance(v, str) and v != value), "elsewhere")
    if isinstance(value, tuple):
        return [v / 2 if isinstance(v, float) else 2 * v for v in value] or ["other"]
    return not value if isinstance(value, bool) else 2 * value if isinstance(value, int) else value / 2


@pytest.mark.parametrize("extractor", ONE_EACH, indirect=True)
def test_every_option_changes_the_fingerprint_or_no_row(extractor: Extractor) -> None:
    """An option is in the fingerprint, or the class declares that it changes no feature, and it changes none.

    Small models in every run, the others with the slow tests.
    """
    options, before = extractor.options.model_dump(mode="json"), digest(extractor.semantic())
    refused = {"decode"} if getattr(extractor, "pixels", 0) is None else set()  # NaFlex's processor, see test_jpeg.py
    for name in type(extractor.options).model_fields.keys() - ELSEWHERE - refused:
        changed = load_extractor(spec_of(extractor.name, **{**options, name: another(extractor, name)}), "cpu")
        if name in {"contaminated_on", *extractor.execution_only}:
            assert digest(changed.semantic()) == before, name
            for rows_of, same in zip(encoders(extractor).values(), encoders(changed).values(), strict=True):
                np.testing.assert_array_equal(
                    rows_of(images_for(extractor), TEXTS), same(images_for(extractor), TEXTS), err_msg=name
                )
        else:
            assert digest(changed.semantic()) != before, name


def test_shipped_extractors_state_every_option_themselves(extractor: Extractor) -> None:
    """So that the stores made before "options" was a field are found."""
    assert "options" not in extractor.semantic()
    assert {*extractor.stated, *extractor.execution_only} <= set(type(extractor.options).model_fields)


class HistogramOptions(ExtractorOptions):
    bins: int = 4
    threads: int = 1


class Histogram(Extractor):
    """A third party's extractor: color histograms, and no ``semantic`` of its own."""

    title = "color histogram"
    Options = HistogramOptions
    execution_only = ("threads",)
    options: HistogramOptions

    def dim(self, table: str) -> int:
        return int(self.options.bins**3)


@pytest.mark.parametrize("name", HistogramOptions.model_fields)
def test_the_base_class_puts_a_third_party_s_options_into_the_fingerprint(name: str) -> None:
    cpu = torch.device("cpu")
    plain = Histogram(HistogramOptions(), cpu)
    changed = Histogram(HistogramOptions(**{name: another(plain, name)}), cpu)
    same = name in {"threads", "contaminated_on"}
    assert (digest(changed.semantic()) == digest(plain.semantic())) == same
    assert plain.semantic()["options"] == {"bins": 4}


def test_half_precision_stays_near_float32(extractor: Extractor) -> None:
    options = extractor.options.model_dump(mode="json") | {"dtype": "bfloat16"}
    half = load_extractor(spec_of(extractor.name, **options), "cpu")
    for rows_of, other in zip(encoders(extractor).values(), encoders(half).values(), strict=True):
        exact, near = rows_of(images_for(extractor), TEXTS), other(images_for(extractor), TEXTS)
        assert (exact * near).sum(1).min() > 0.99


def test_global_random_state_is_left_alone(extractor: Extractor) -> None:
    state = torch.get_rng_state()
    for rows_of in encoders(extractor).values():
        rows_of(images_for(extractor), TEXTS)
    assert torch.equal(state, torch.get_rng_state())
