from __future__ import annotations

import pytest
from pydantic import ValidationError

from manifests.errors import ManifestError, Problems
from manifests.schema import Dataset, Gallery, Image, RunSpec, Session, Turn


def session(session_id: str = "s", images: str = "abc", split: str = "test", target: str | None = None) -> Session:
    """A session whose images are the letters of ``images``, the last one its target."""
    turns = tuple(Turn(reference=i, captions=(f"more {i}", " is   red ")) for i in images[:-1])
    return Session(id=session_id, category="dress", split=split, turns=turns, target=target or images[-1])


def dataset(sessions: tuple[Session, ...], images: str = "abcd", gallery: str = "abcd") -> Dataset:
    return Dataset(
        name="tiny",
        images={i: Image(id=i, caption=i) for i in images},
        sessions=sessions,
        galleries=(Gallery(category="dress", split="test", images=tuple(gallery)),),
    )


def problems_of(data: Dataset) -> str:
    problems = Problems("tiny")
    data.check(problems)
    return "\n".join(map(str, problems.found))


def test_the_target_of_a_turn_is_the_next_reference_and_at_last_the_sessions_target() -> None:
    s = session(images="abcd")
    assert s.targets == ("b", "c", "d")
    assert s.pairs == (("a", "b"), ("b", "c"), ("c", "d"))


def test_texts_join_captions_and_turns_and_collapse_white_space() -> None:
    s = session()
    assert s.turns[0].text == "more a and is red"
    assert s.text == "more a and is red. more b and is red"


def test_queries_hold_every_turn_and_the_concatenated_query_with_the_first_reference() -> None:
    s = session()
    assert list(dataset((s,)).queries()) == [("a", s.turns[0].text), ("b", s.turns[1].text), ("a", s.text)]


@pytest.mark.parametrize("captions", [(), ("",), ("fine", "   ")])
def test_a_blank_caption_is_refused(captions: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="captions"):
        Turn(reference="a", captions=captions)


def test_a_sound_dataset_has_no_problems() -> None:
    assert problems_of(dataset((session(),))) == ""


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (dataset((session(images="axc"),)), "session 's' turn 2: image 'x' is not in the catalog"),
        (dataset((session(target="x"),)), "session 's' target: image 'x' is not in the catalog"),
        (dataset((session(), session())), "session 's': this id appears more than once"),
        (dataset((session(),), gallery="ab"), "target 'c' is not in the test gallery of 'dress'"),
        (dataset((session(),), gallery="abccd"), "gallery dress/test: image 'c' is listed 2 times"),
        (dataset((session(),), gallery="abcx"), "gallery dress/test: image 'x' is not in the catalog"),
    ],
)
def test_every_inconsistency_is_named_with_its_place(data: Dataset, expected: str) -> None:
    assert expected in problems_of(data)


def test_all_problems_are_reported_at_once() -> None:
    found = problems_of(dataset((session(images="axc"), session("t", "abz"))))
    assert "image 'x'" in found and "image 'z'" in found


def test_problems_raise_once_with_a_count_and_exit_code_4() -> None:
    problems = Problems("f.toml")
    problems.add("line 3", "no 'target'", "every session needs one")
    with pytest.raises(
        ManifestError, match=r"1 problem found\n  f.toml: line 3: no 'target' \(every session"
    ) as caught:
        problems.raise_if_any()
    assert caught.value.exit_code == 4


def test_a_specs_name_must_be_a_folder_name() -> None:
    with pytest.raises(ValidationError, match="folder name"):
        RunSpec(name="../up", dataset={"name": "demo"}, extractor={"name": "clip"})


def test_training_defaults_are_the_papers() -> None:
    training = RunSpec(name="x", dataset={"name": "demo"}, extractor={"name": "clip"}).training
    assert (training.epochs, training.batch_size, training.learning_rate) == (100, 80, 1e-4)
    assert (training.scale, training.padding, training.early_stopping) == (1.0, "repeat", None)


def test_turns_may_lead_to_the_final_target() -> None:
    following = session(images="abcd")
    final = following.model_copy(update={"turn_targets": "final"})
    assert final.targets == ("d", "d", "d")
    assert final.pairs == (("a", "d"), ("b", "d"), ("c", "d"))
    assert final.last(2).targets == ("d", "d")
    assert dataset((following,)).turn_targets == ("next",)
    assert dataset((following, final)).turn_targets == ("next", "final")


def test_a_dump_names_the_turn_targets_only_where_they_are_final() -> None:
    following = session(images="abcd")
    final = following.model_copy(update={"turn_targets": "final"})
    assert set(following.model_dump(mode="json")) == {"id", "category", "split", "turns", "target"}
    assert final.model_dump() == following.model_dump() | {"turn_targets": "final"}
    assert type(final).model_validate_json(final.model_dump_json()) == final
