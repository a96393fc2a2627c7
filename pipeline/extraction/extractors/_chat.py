"""Chat formats of multimodal LLM embedding models: what the prompt contains, and which position is the embedding.

The table follows the public model pages and loading code of each family. Prompts are rendered once with the model's own
chat template; texts are then inserted, so that rendering is not repeated for each item.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from manifests.identity import digest
from manifests.text import on_one_line
from pipeline.extraction.hub import Checkpoint, ModelError
from pipeline.extraction.tokens import Tokens

IMAGE_TOKEN = "<|image_pad|>"
_SLOT = "SLOTFORTHETEXT{}"  # plain letters, which no template changes
_LEAST_TEXT = 32  # tokens that the largest image must leave for the text


@dataclass(frozen=True)
class ChatFormat:
    """Format of one model family.

    ``instruction``: system turn of a query by default, and of a target always; None: no system turn. ``two_turns``: the
    image and the text are separate user turns, each answered by ``pool``. ``pool``: token whose last position is the
    embedding; "": the last token. ``generation``: the prompt ends with an open assistant turn, followed by ``suffix``.
    ``think``: an empty thinking block opens every assistant turn. ``pixels``: image size bounds; None: the processor's.
    """

    title: str
    instruction: str | None
    padding: Literal["left", "right"] = "right"
    generation: bool = True
    suffix: str = ""
    two_turns: bool = False
    pool: str = ""
    think: bool = False
    pixels: tuple[int, int] | None = None
    max_tokens: int = 8192


_GME: Any = {"pixels": (256 * 28 * 28, 1280 * 28 * 28), "max_tokens": 1800}
FORMATS = {
    "qwen3vl": ChatFormat("Qwen3-VL-Embedding", "Represent the user's input.", pixels=(4096, 1_843_200)),
    "gme": ChatFormat("GME-Qwen2-VL", "You are a helpful assistant.", "left", True, "<|endoftext|>", **_GME),
    "procir": ChatFormat("ProCIR", None, generation=False, two_turns=True, pool="<emb_all>", think=True),
}
_BY_TYPE = {"qwen3_vl": "qwen3vl", "qwen3_vl_moe": "qwen3vl", "qwen2_vl": "gme"}


def format_of(asked: str, model_type: str, vocabulary: dict[str, int], name: str) -> str:
    """Return the name of the format: ``asked``, or for "auto" the one of the tokenizer's pool token or model type."""
    if asked != "auto":
        return asked
    pooled = next((n for n, f in FORMATS.items() if f.pool and f.pool in vocabulary), None)
    found = pooled or _BY_TYPE.get(model_type)
    if found is None:
        fix = f"name the one that it was trained with, extractor.convention = {' or '.join(map(repr, FORMATS))}"
        raise ModelError(f"model {name!r} is of type {model_type!r}, whose prompt is not known: {fix}")
    return found


def chat_template(checkpoint: Checkpoint, tokenizer: Any) -> str:
    """Return the model's chat template. Raises ModelError if it has none."""
    jinja = checkpoint.path / "chat_template.jinja"
    found = tokenizer.chat_template or checkpoint.json("chat_template.json").get("chat_template")
    if isinstance(found, dict):
        found = found.get("default")
    if not found and jinja.is_file():
        found = jinja.read_text(encoding="utf-8")
    if not isinstance(found, str) or not found:
        files = "(tokenizer_config.json, chat_template.jinja or chat_template.json): fetch the file from its hub page"
        others = "a text encoder belongs to the caption extractor, a dual encoder to clip"
        raise ModelError(f"model {checkpoint.name!r} has no chat template {files}; {others}")
    return found


class Chat(Tokens):
    """Token ids of whole prompts, with one image token per image; a text that is too long loses its own end.

    ``room``: tokens that the largest images may take. ``instruction``: of queries.
    """

    def __init__(
        self, tokenizer: Any, template: str, form: ChatFormat, instruction: str | None, length: int, name: str
    ):
        super().__init__(tokenizer, length, name=name)
        self.form, self.template = form, template
        self.image_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        self.instruction = form.instruction if instruction is None else _sentence(instruction)
        self.room = 0
        self._prompts: dict[int, str] = {}
        self._added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        if form.pool and form.pool not in tokenizer.get_vocab():
            what = f"its tokenizer has no token {form.pool!r}, whose position is the embedding of {form.title}"
            fix = "give the folder with the fitted tokenizer, or another extractor.convention"
            raise ModelError(f"model {name!r}: {what}: {fix}")
        self.pool_id = int(tokenizer.convert_tokens_to_ids(form.pool)) if form.pool else None
        self._target = self._render([*self._system(form.instruction), *self._user([{"type": "image"}])])
        self.target = self._ids([self._target])[0]

    def reserve(self, image_tokens: int) -> None:
        """Reserve ``image_tokens`` for the images. Raises ModelError if too few tokens are left for the text."""
        plain = len(self._ids([self._prompt(1).replace(_SLOT.format(0), "")])[0])
        left = self.length - plain - image_tokens
        if left < _LEAST_TEXT:
            what = f"an image takes up to {image_tokens:,} of {self.length:,} tokens and the prompt {plain}"
            fix = "lower extractor.max_pixels, or raise extractor.max_tokens"
            raise ModelError(f"model {self.name!r}: {what}, which leaves {max(left, 0)} for the text: {fix}")
        self.room = image_tokens

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the prompt's ids of each text with one image, int64 [tokens]."""
        return self.encode_turns([(text,) for text in texts])

    def encode_turns(self, chats: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Return the prompt's ids of each chat of one text (and image) per turn, int64 [tokens]."""
        if not chats:
            return []
        found = self._ids([self._fill(texts) for texts in chats])
        for n, ids in enumerate(found):
            over = len(ids) + len(chats[n]) * (self.room - 1) - self.length
            if over > 0:
                found[n] = self._ids([self._fill(self._shortened(chats[n], over))])[0]
                with self._lock:
                    self.cut += 1
                    self._long.update(chats[n])
        return found

    def _shortened(self, texts: Sequence[str], over: int) -> list[str]:
        """Return the texts without their last ``over`` tokens or more, taken from the longest text first."""
        with self._lock:
            ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        while over > 0 and any(ids):
            longest = max(range(len(ids)), key=lambda i: len(ids[i]))
            taken = min(over, max(1, len(ids[longest]) // 2))
            ids[longest], over = ids[longest][: len(ids[longest]) - taken], over - taken
        return [self.tokenizer.decode(kept).rstrip("\ufffd") for kept in ids]

    def _ids(self, prompts: Sequence[str]) -> list[np.ndarray]:
        try:
            with self._lock:
                found = self.tokenizer(list(prompts), padding=False, return_attention_mask=False)
        except Exception as error:  # of the tokenizers library, or settings of a wrong type
            raise ModelError(f"model {self.name!r}: its tokenizer fails on its prompt: {error}") from error
        return [np.asarray(ids, dtype=np.int64) for ids in found["input_ids"]]

    def _fill(self, texts: Sequence[str]) -> str:
        prompt = self._prompt(len(texts))
        for n in reversed(range(len(texts))):  # SLOT..12 before SLOT..1
            prompt = prompt.replace(_SLOT.format(n), self._plain(texts[n]))
        return prompt

    def _plain(self, text: str) -> str:
        """Return the text with a space inside every special token's string, so that it is read as letters."""
        for token in self._added:
            if len(token) > 1:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _prompt(self, turns: int) -> str:
        if turns not in self._prompts:
            chat = self._system(self.instruction)
            for n in range(turns):
                image, text = {"type": "image"}, {"type": "text", "text": _SLOT.format(n)}
                parts = [[image], [text]] if self.form.two_turns else [[image, text]]
                chat += [message for part in parts for message in self._user(part)]
            made = self._render(chat)
            images, slots = made.count(IMAGE_TOKEN), sum(made.count(_SLOT.format(n)) for n in range(turns))
            if images != turns or (turns < 10 and slots != turns):
                what = f"its chat template shows {images} images and {slots} texts of {turns} each"
                raise ModelError(f"model {self.name!r}: {what}: it is not the template of an embedding model")
            self._prompts[turns] = made
        return self._prompts[turns]

    def _system(self, instruction: str | None) -> list[dict[str, Any]]:
        return [] if not instruction else [{"role": "system", "content": [{"type": "text", "text": instruction}]}]

    def _user(self, content: list[dict[str, Any]]) -> list[dict[str, Any]]:
        turn: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.form.pool:
            turn.append({"role": "assistant", "content": [{"type": "text", "text": self.form.pool}]})
        return turn

    def _render(self, chat: list[dict[str, Any]]) -> str:
        try:
            how = {"tokenize": False, "add_generation_prompt": self.form.generation}
            made = self.tokenizer.apply_chat_template(chat, chat_template=self.template, **how)
        except Exception as error:  # errors of the template itself
            what = f"its chat template fails on an image with a text: {on_one_line(error)}"
            raise ModelError(f"model {self.name!r}: {what}") from error
        if self.form.think:
            made = re.sub(r"(<\|im_start\|>assistant\n)(?!<think>)", r"\1<think>\n\n</think>\n\n", made)
        return made + self.form.suffix

    def semantic(self) -> dict[str, Any]:
        """Return the semantic fields: the tokenizer's, and the digest of the prompts."""
        return {
            **super().semantic(),
            "padding": f"longest, {self.form.padding}",
            "truncation": "the longest text first",
            "prompts": digest([self._prompt(1), self._target]),
            "image_room": self.room,
        }


def _sentence(instruction: str) -> str:
    """Return the instruction with a period at its end, unless it ends in punctuation (Qwen3-VL-Embedding's rule)."""
    text = " ".join(instruction.split())
    return text if not text or not text[-1].isalnum() else f"{text}."
