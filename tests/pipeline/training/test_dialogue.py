"""Dialogues step by step equal whole sessions, go back, and resume from disk; for every memory model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from pipeline.training.checkpoint import save_model
from pipeline.training.dialogue import Dialogue, DialogueError, MissingDialogueError
from pipeline.training.models import MemoryModel, build_model, models
from pipeline.training.models._stage import TRACKED_TURNS
from pipeline.training.models.cm_ntm import CascadeState

D, T = 6, TRACKED_TURNS + 2  # beyond the turns that have statistics of their own
OPTIONS = {
    "ewma": {"alpha": 0.7},
    "lstm": {"hidden": 4},
    "v_ntm": {"slots": 3, "width": 4, "hidden": 5},
    "cm_ntm": {"stages": 3, "slots": 2, "width": 4, "hidden": 5},
}
names = pytest.mark.parametrize("name", models.names())


def generic(name: str, seed: int = 0, **more: object) -> MemoryModel:
    """Double precision, in eval mode, with random weights and statistics."""
    model = build_model(name, OPTIONS.get(name, {}) | more, D).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if key != "alpha":
                value.copy_(noise.square() + 0.3 if key.endswith("running_var") else 0.7 * noise)
    return model.eval()


def a_session(turns: int = T, seed: int = 1) -> Tensor:
    return torch.randn(turns, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(model: MemoryModel, queries: Tensor) -> Tensor:
    """f'_qry(1..T) of the session in one call; a model of concatenated captions reads each of them as a session."""
    if model.reads == "concatenated":
        return model(queries[:, None], torch.ones(len(queries), dtype=torch.int64))[:, 0].detach()
    return model(queries[None], torch.tensor([len(queries)]))[0].detach()


def close(found: Tensor | None, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@names
def test_saying_turn_by_turn_equals_the_whole_session(name: str) -> None:
    model, queries = generic(name), a_session()
    dialogue, expected = Dialogue(model), whole(model, queries)
    assert dialogue.turn == 0 and dialogue.current is None
    for n, query in enumerate(queries):
        close(dialogue.say(query, f"turn {n}"), expected[n])
        close(dialogue.current, expected[n])
    assert dialogue.turn == T and dialogue.notes == tuple(f"turn {n}" for n in range(T))


@names
def test_going_back_leaves_no_trace(name: str) -> None:
    model, queries, other = generic(name), a_session(), a_session(seed=2)
    dialogue = Dialogue(model)
    for query in (queries[0], other[0], other[1]):
        dialogue.say(query, "said")
    close(dialogue.back(2), whole(model, queries[:1])[0])
    for query in queries[1:3]:
        dialogue.say(query)
    close(dialogue.current, whole(model, queries[:3])[-1])
    assert dialogue.notes == ("said", "", "")
    assert dialogue.back(3) is None and dialogue.turn == 0
    close(dialogue.say(other[0]), whole(model, other[:1])[0])
    for turns in (0, 2, -1):
        with pytest.raises(DialogueError, match=rf"back {turns} turn\(s\): the dialogue has had 1"):
            dialogue.back(turns)


@names
def test_a_saved_dialogue_goes_on_and_goes_back(name: str, tmp_path: Path) -> None:
    model, queries, path = generic(name), a_session(), tmp_path / "there" / "dialogue.safetensors"
    expected, dialogue = whole(model, queries), Dialogue(model, "run a")
    for query in queries[:3]:
        dialogue.say(query, "schwarz, länger")
    dialogue.save(path)
    resumed = Dialogue.load(path, generic(name), "run a")
    assert resumed.turn == 3 and resumed.notes == dialogue.notes
    assert torch.equal(resumed.current, dialogue.current)
    close(resumed.say(queries[3]), expected[3])
    close(resumed.back(3), expected[0])
    close(resumed.say(queries[1]), expected[1])

    Dialogue(model, "run a").save(path)  # no turn yet
    close(Dialogue.load(path, model, "run a").say(queries[0]), expected[0])


@names
def test_a_run_folder_opens_and_resumes(name: str, tmp_path: Path) -> None:
    model, queries, folder = generic(name), a_session(2), tmp_path / "0123456789ab"
    save_model(folder, model)
    dialogue = Dialogue.open(folder)
    assert dialogue.run == "0123456789ab"
    dialogue.say(queries[0])
    dialogue.save(tmp_path / "state")
    close(Dialogue.resume(tmp_path / "state", folder).say(queries[1]), whole(model, queries)[1])


@names
def test_the_state_of_another_run_is_refused(name: str, tmp_path: Path) -> None:
    path, model = tmp_path / "state", generic(name)
    dialogue = Dialogue(model, "run a")
    dialogue.say(a_session()[0])
    dialogue.save(path)
    with pytest.raises(DialogueError, match=rf"the state of {name} version \d+, run run a; this is .* run run b"):
        Dialogue.load(path, model, "run b")
    with pytest.raises(DialogueError, match=r"run \(none\)"):
        Dialogue.load(path, model)
    another = "last" if name != "last" else "avg"
    with pytest.raises(DialogueError, match=f"the state of {name} .* this is {another}"):
        Dialogue.load(path, generic(another), "run a")
    if model.trainable:
        with pytest.raises(DialogueError, match="other weights"):
            Dialogue.load(path, generic(name, seed=5), "run a")


def test_the_cascades_state_is_restored_bit_by_bit(tmp_path: Path) -> None:
    model, path = generic("cm_ntm"), tmp_path / "state"
    dialogue = Dialogue(model)
    for query in a_session(2):
        dialogue.say(query)
    dialogue.save(path)
    resumed = Dialogue.load(path, model)
    assert isinstance(resumed.state, CascadeState) and resumed.state.turn == 2 and len(resumed.state.stages) == 3
    for one, other in zip(dialogue.state.stages, resumed.state.stages, strict=True):
        assert type(one) is type(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_model_in_training_or_a_wrong_query_is_refused_and_changes_nothing() -> None:
    with pytest.raises(DialogueError, match=r"cm_ntm: .*model.eval\(\)"):
        Dialogue(generic("cm_ntm").train())
    dialogue, queries = Dialogue(generic("cm_ntm")), a_session()
    dialogue.say(queries[0])
    for query in (queries, queries[0, :3], queries[:1]):
        with pytest.raises(DialogueError, match=r"turn 2: f_qry has shape \[.*\], cm_ntm reads \[6\]"):
            dialogue.say(query)
    with pytest.raises(DialogueError, match="turn 2: f_qry holds NaN"):
        dialogue.say(queries[1] * torch.nan)
    close(dialogue.say(queries[1]), whole(dialogue.model, queries)[1])


def test_files_that_are_no_dialogue_are_named(tmp_path: Path) -> None:
    model, path = generic("cm_ntm"), tmp_path / "state"
    with pytest.raises(MissingDialogueError, match="state: no saved dialogue"):
        Dialogue.load(path, model)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DialogueError, match="not a saved dialogue"):
        Dialogue.load(path, model)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(DialogueError, match="format None"):
        Dialogue.load(path, model)
    dialogue = Dialogue(model)
    dialogue.say(a_session()[0])
    dialogue.save(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    for wrong in (
        {k: v for k, v in tensors.items() if k != "1.state.stages.1.read"},
        tensors | {"1.state.stages.1.read": torch.zeros(1, 9)},
    ):
        save_file(wrong, path, about)
        with pytest.raises(DialogueError, match=r"not a whole dialogue.*stages\.1\.read"):
            Dialogue.load(path, model)
