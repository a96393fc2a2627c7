"""Interactive dialogues: one f_qry in and one f'_qry out per turn, undo, and saving and resuming of the state."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cache.files import replace_atomically
from manifests.errors import FashionNTMError, IncompleteError
from pipeline.training.checkpoint import load_model
from pipeline.training.models.base import MemoryModel

FORMAT = "1"


class DialogueError(FashionNTMError, ValueError):
    """Raised for a query of the wrong shape, a missing turn, or a saved state that is damaged or of another run."""


class MissingDialogueError(IncompleteError, FileNotFoundError):
    """The file does not exist."""


class PastTurn(NamedTuple):
    """One turn. output: [D], f'_qry(n); note: free text of the caller; state: the model's state after the turn."""

    output: Tensor
    note: str
    state: Any


class Dialogue:
    """A dialogue with a memory model for features of width D. Each turn is one step, regardless of the number of turns.

    The outputs equal those of ``model(queries, lengths)`` on the whole session. For a model that reads concatenated
    captions (``model.reads``), f_qry(n) is the feature of all captions so far as one text.

    ``run`` is the id of the model's run; a saved state can only be resumed with the same run.
    """

    def __init__(self, model: MemoryModel, run: str = ""):
        """Raises DialogueError for a model in training mode."""
        if model.training:
            raise DialogueError(f"{model.name}: a dialogue needs a model in eval mode; call model.eval() first")
        self.model, self.run = model, run
        self._start = model.initial_state(1)
        self._said: list[PastTurn] = []

    @classmethod
    def open(cls, run_folder: Path, device: torch.device | str = "cpu") -> Dialogue:
        """Start a dialogue with the trained model of a run folder. Raises as ``load_model``."""
        return cls(load_model(run_folder, device), run_folder.name)

    @property
    def turn(self) -> int:
        return len(self._said)

    @property
    def state(self) -> Any:
        """The model's state after the last turn, for a batch of one; a ``CascadeState`` for the CM-NTM."""
        return self._said[-1].state if self._said else self._start

    @property
    def current(self) -> Tensor | None:
        """f'_qry of the last turn, [D]; None before the first one."""
        return self._said[-1].output if self._said else None

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(said.note for said in self._said)

    @torch.no_grad()
    def say(self, f_qry: Tensor, note: str = "") -> Tensor:
        """Add a turn: f_qry(n) [D], or [D + E] for a model that reads ``texts`` -> f'_qry(n) [D].

        ``note`` (e.g. feedback) is stored too. A wrong shape or non-finite values raise DialogueError and add nothing.
        """
        width = self.model.dim + self.model.texts
        if f_qry.shape != (width,):
            what = f"turn {self.turn + 1}: f_qry has shape {list(f_qry.shape)}, {self.model.name} reads"
            raise DialogueError(f"{what} [{width}]; give one feature of the store that the run was trained on")
        if not torch.isfinite(f_qry).all():
            raise DialogueError(f"turn {self.turn + 1}: f_qry holds NaN or infinite values; extract this query again")
        output, state = self.model.step(f_qry[None], self.state)
        self._said.append(PastTurn(output[0], note, state))
        return output[0]

    def back(self, turns: int = 1) -> Tensor | None:
        """Undo ``turns`` turns; return f'_qry of the last one left, or None. Raises DialogueError if there are less."""
        if not 0 < turns <= self.turn:
            raise DialogueError(f"cannot go back {turns} turn(s): the dialogue has had {self.turn}")
        del self._said[-turns:]
        return self.current

    def save(self, path: Path) -> None:
        """Write the states of all turns to one safetensors file, so that turns can also be undone after resuming."""
        tensors: dict[str, Tensor] = {}
        for number, said in enumerate(self._said, start=1):
            tensors |= {f"{number}.state.{name}": value for name, value in _flatten(said.state).items()}
            tensors[f"{number}.output"] = said.output
        about = {"format": FORMAT, "run": self.run, "turns": str(self.turn), "notes": json.dumps(self.notes)}
        about |= {"model": self.model.name, "version": str(self.model.version), "weights": weights_digest(self.model)}
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        replace_atomically(path, save(kept, about))

    @classmethod
    def load(cls, path: Path, model: MemoryModel, run: str = "") -> Dialogue:
        """Load the dialogue saved in ``path`` to continue it with ``model``, on the model's device.

        Raises MissingDialogueError without the file, DialogueError for damage, or another run, model or set of weights.
        """
        dialogue = cls(model, run)
        about, tensors = _read(path)
        saved = f"{about.get('model')} version {about.get('version')}, run {about.get('run') or '(none)'}"
        here = f"{model.name} version {model.version}, run {run or '(none)'}"
        if saved != here:
            what = f"{path}: the state of {saved}; this is {here}"
            raise DialogueError(f"{what}: resume it with the run that it belongs to")
        if about.get("weights") != weights_digest(model):
            what = (
                f"{path}: the state of {saved}, with other weights than those of this model (the run was trained again,"
            )
            raise DialogueError(f"{what} or in another precision); start a new dialogue")
        like = next(iter(model.state_dict().values()), torch.empty(0))
        try:
            for number, note in zip(range(1, int(about["turns"]) + 1), json.loads(about["notes"]), strict=True):
                prefix = f"{number}.state."
                found = {k.removeprefix(prefix): v.to(like.device) for k, v in tensors.items() if k.startswith(prefix)}
                output = tensors[f"{number}.output"].to(like.device)
                dialogue._said.append(PastTurn(output, str(note), _unflatten(dialogue._start, found)))
        except (KeyError, ValueError, TypeError) as error:
            raise DialogueError(f"{path}: not a whole dialogue ({error!r}); start a new one") from error
        return dialogue

    @classmethod
    def resume(cls, path: Path, run_folder: Path, device: torch.device | str = "cpu") -> Dialogue:
        """Load the dialogue saved in ``path`` with the trained model of a run folder (see ``load``)."""
        return cls.load(path, load_model(run_folder, device), run_folder.name)


def weights_digest(model: MemoryModel) -> str:
    """Return the SHA-256 (64 hex digits) of the model's weights and statistics with their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise MissingDialogueError(f"{path}: no saved dialogue here; save one first, or start a new one")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise DialogueError(f"{path}: not a saved dialogue ({error}); start a new one") from error
    if (found := about.get("format")) != FORMAT:
        raise DialogueError(f"{path}: dialogue format {found!r}, this program reads {FORMAT!r}; start a new one")
    return about, tensors


def _flatten(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """Flatten a state of named tuples, tuples, tensors and ints to {"stages.0.memory": tensor}."""
    if isinstance(state, Tensor):
        return {prefix: state}
    if isinstance(state, int):
        return {prefix: torch.tensor(state)}
    names = getattr(state, "_fields", range(len(state)))
    flat: dict[str, Tensor] = {}
    for name, part in zip(names, state, strict=True):
        flat |= _flatten(part, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _unflatten(like: Any, flat: dict[str, Tensor], prefix: str = "") -> Any:
    """Invert ``_flatten`` for a state with the structure of ``like``, where an axis of length 0 matches any length.

    Raises KeyError for a missing part, ValueError for a wrong shape.
    """
    if isinstance(like, Tensor):
        found = flat[prefix]
        if found.dim() != like.dim() or any(n not in (m, 0) for n, m in zip(like.shape, found.shape, strict=True)):
            raise ValueError(f"{prefix} has shape {list(found.shape)}, expected {list(like.shape)}")
        return found
    if isinstance(like, int):
        return int(flat[prefix])
    names = getattr(like, "_fields", range(len(like)))
    places = (f"{prefix}.{name}" if prefix else str(name) for name in names)
    parts = [_unflatten(part, flat, place) for part, place in zip(like, places, strict=True)]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
