"""Tokenization in worker threads, and padding of batches, for all text towers."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manifests.identity import digest, file_digest
from pipeline.extraction.hub import ModelError


def pad_ids(rows: Sequence[np.ndarray], pad: int, left: bool = False, width: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Pad token ids to the longest row or ``width``; return ids and mask (1: a token), int64 [n, L] each."""
    width = max(width, *(len(row) for row in rows))
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for n, row in enumerate(rows):
        part = slice(width - len(row), width) if left else slice(0, len(row))
        ids[n, part], mask[n, part] = row, 1
    return ids, mask


class Tokens:
    """Tokenizer with a maximum length. ``full``: always pad to it, as in the training of SigLIP's text towers.
    ``prompt``: prepended to every text, after ``clean`` is applied to it.

    ``cut`` counts the truncated texts; ``take_truncated`` returns each of them once.
    """

    def __init__(
        self,
        tokenizer: Any,
        length: int,
        full: bool = False,
        lower: bool = False,
        name: str = "",
        prompt: str = "",
        clean: Callable[[str], str] | None = None,
    ):
        if tokenizer.pad_token_id is None:
            raise ModelError(f"model {name!r}: its tokenizer has no padding token: set one in tokenizer_config.json")
        self.tokenizer, self.length, self.full, self.lower = tokenizer, length, full, lower
        self.name = name
        self.prompt, self.clean = prompt, clean
        self.cut = 0
        self._long: set[str] = set()
        self._lock = threading.Lock()  # tokenizers does not allow state changes while another thread encodes

    def require_place(self, model: Any) -> None:
        """Raise ModelError unless ``model`` has an embedding for the ids of a text and of the padding."""
        try:
            found = self.encode(["a red dress"])[0].tolist()
        except ModelError:
            raise
        except Exception as error:  # of the tokenizers library: no unknown token, other kinds of ids
            raise ModelError(f"model {self.name!r}: its tokenizer fails on a text: {error}") from error
        self.cut, self._long = 0, set()
        size = getattr(getattr(model.config, "text_config", model.config), "vocab_size", None)
        highest = max(*found, self.tokenizer.pad_token_id)
        if isinstance(size, int) and highest >= size:
            what = f"its tokenizer gives id {highest:,}, the model has {size:,} embeddings"
            raise ModelError(f"model {self.name!r}: {what}: take both from one download")

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, int64 [tokens], with special tokens, truncated to ``length``."""
        given = [self.prompt + (self.clean(text) if self.clean else text) for text in texts]
        given = [text.lower() for text in given] if self.lower else given
        if not given:
            return []
        with self._lock:
            only = {"padding": False, "return_attention_mask": False, "return_token_type_ids": False}
            found = self.tokenizer(given, truncation=True, max_length=self.length, **only)
            long = [text for text, e in zip(texts, found.encodings or (), strict=False) if e.overflowing]
            self.cut += len(long)
            self._long.update(long)
        return [np.asarray(ids, dtype=np.int64) for ids in found["input_ids"]]

    def take_truncated(self, texts: Sequence[str]) -> set[str]:
        """Return those of ``texts`` that were truncated since the last call for them."""
        with self._lock:
            found = self._long.intersection(texts)
            self._long -= found
        return found

    def pad(self, batch: Sequence[np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` and, if the model has it as an input, ``attention_mask``, as ``padded``."""
        ids, mask = self.padded(batch, device)
        masked = "attention_mask" in self.tokenizer.model_input_names
        return {"input_ids": ids, "attention_mask": mask} if masked else {"input_ids": ids}

    def padded(self, batch: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids and the mask of a batch (1: a token), int64 [n, longest or full] each, on ``device``."""
        left, width = self.tokenizer.padding_side == "left", self.length if self.full else 1
        ids, mask = pad_ids(batch, self.tokenizer.pad_token_id, left, width)
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)

    def semantic(self) -> dict[str, Any]:
        """Return the semantic fields: digest of the tokenizer, maximum length, padding and model inputs."""
        prompt = {"prompt": self.prompt} if self.prompt else {}
        return prompt | {
            "digest": self._digest(),
            "max_length": self.length,
            "truncation": self.tokenizer.truncation_side,
            "padding": f"{'max_length' if self.full else 'longest'}, {self.tokenizer.padding_side}",
            "split_special_tokens": bool(getattr(self.tokenizer, "split_special_tokens", False)),
            "attention_mask": "attention_mask" in self.tokenizer.model_input_names,
            "lowercase": self.lower,
        }

    def _slow(self) -> dict[str, Any]:
        """Return the state of a Python tokenizer besides its vocabulary: merges, or pieces with scores, and flags."""
        flags = {k: v for k, v in self.tokenizer.init_kwargs.items() if isinstance(v, bool | int | float)}
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(NotImplementedError):
            files = self.tokenizer.save_vocabulary(folder) or ()
            return {"flags": flags, "files": {Path(f).name: file_digest(f) for f in files if f}}
        return {"flags": flags}

    def _digest(self) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            state = json.loads(backend.to_str())
            for key in ("padding", "truncation"):  # set by each call, and separate semantic fields
                state.pop(key, None)
        else:
            state = {"class": type(self.tokenizer).__name__, "vocabulary": self.tokenizer.get_vocab()} | self._slow()
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        return digest([state, self.tokenizer.pad_token_id, special])
