"""Configuration files of a sentence-transformers folder; unsupported settings are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.errors import nearest
from pipeline.extraction.hub import Checkpoint, ModelError

_CHAIN = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_MODES = {"mean_tokens": "mean", "cls_token": "cls"}
# File names of all versions, in the order in which the library searches.
_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_TEXT_OUTPUT = {"method": "forward", "method_output_name": "last_hidden_state"}
_DEFAULTS = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}


@dataclass(frozen=True)
class SentenceConfig:
    """Settings of a sentence encoder besides its transformer.

    ``pooling``: "mean" or "cls". ``normalize``: the output has unit L2 norm. ``prompt``: prepended to every text.
    ``max_length``: in tokens; None: that of the model and its tokenizer.
    """

    pooling: str = "mean"
    normalize: bool = False
    prompt: str = ""
    max_length: int | None = None
    lower: bool = False


def sentence_config(checkpoint: Checkpoint) -> SentenceConfig:
    """Return the configuration of a sentence encoder; mean pooling for a plain transformer.

    Raises ModelError with the first setting that the caption extractor does not support.
    """
    pooling, normalize = _modules(checkpoint)
    mode, with_prompt = _pooling(checkpoint, pooling)
    prompt = _prompt(checkpoint)
    if prompt and not with_prompt:
        raise _refused(
            checkpoint, f"leaves the prompt out of the pooling ({pooling}/config.json: include_prompt = false)"
        )
    settings = _settings(checkpoint)
    length = settings.get("max_seq_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise _refused(checkpoint, f"has max_seq_length = {length!r}, which is no number of tokens")
    return SentenceConfig(mode, normalize, prompt, length, bool(settings.get("do_lower_case", False)))


def _modules(checkpoint: Checkpoint) -> tuple[str, bool]:
    """Return (folder of the pooling module, whether a normalization module follows) from modules.json."""
    found = checkpoint.json("modules.json")
    if not found:
        return "1_Pooling", False
    modules = found.get("")
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise _refused(checkpoint, "has a modules.json that is no list of modules")
    kinds = [str(m.get("type", "")).rsplit(".", 1)[-1] for m in modules]
    if kinds not in _CHAIN:
        known = {kind for chain in _CHAIN for kind in chain}
        extra = next((k for k in kinds if k not in known), None)
        what = f"a {extra} layer" if extra else f"the modules {', '.join(kinds)}"
        raise _refused(
            checkpoint, f"has {what} in modules.json, where {' or '.join(', '.join(c) for c in _CHAIN)} is known"
        )
    paths = [str(m.get("path", "")) for m in modules]
    if paths[0]:
        raise _refused(checkpoint, f"keeps its transformer in the folder {paths[0]!r} (modules.json); move it one up")
    if outside := next((p for p in paths if Path(p).is_absolute() or ".." in Path(p).parts), None):
        raise _refused(checkpoint, f"has a module outside of its folder, {outside!r} (modules.json)")
    if not (checkpoint.path / paths[1] / "config.json").is_file():
        raise _refused(checkpoint, f"lacks {paths[1]}/config.json, which modules.json names: fetch it again")
    for path in paths[2:]:
        about = checkpoint.json(f"{path}/config.json")
        if about.get("module_input_name", "sentence_embedding") != "sentence_embedding" or about.get(
            "module_output_name"
        ) not in (None, "sentence_embedding"):
            raise _refused(checkpoint, f"normalizes something else than its sentence embedding ({path}/config.json)")
    return paths[1], len(paths) > 2


def _pooling(checkpoint: Checkpoint, folder: str) -> tuple[str, bool]:
    """Return ("mean" or "cls", whether the prompt's tokens are pooled too)."""
    config = checkpoint.json(f"{folder}/config.json")
    chosen = [k.removeprefix("pooling_mode_") for k, v in config.items() if k.startswith("pooling_mode_") and v]
    found = config.get("pooling_mode") or chosen or "mean"
    modes = [_MODES.get(m, m) for m in ([found] if isinstance(found, str) else found)]
    if modes not in (["mean"], ["cls"]):
        raise _refused(
            checkpoint, f"pools by {' + '.join(map(str, modes))} ({folder}/config.json), where mean or cls is known"
        )
    return modes[0], bool(config.get("include_prompt", True))


def _prompt(checkpoint: Checkpoint) -> str:
    """Return the text of ``default_prompt_name``; the other prompts are only used when requested by name."""
    config = checkpoint.json("config_sentence_transformers.json")
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise _refused(checkpoint, f"is a {kind}, which is no dense sentence encoder")
    prompts, name = config.get("prompts") or {}, config.get("default_prompt_name")
    if name is None:
        return ""
    if name not in prompts and name not in ("query", "document"):  # these two are empty unless set
        raise _refused(checkpoint, f"has no prompt {name!r}, its default_prompt_name; {nearest(str(name), prompts)}")
    return str(prompts.get(name) or "")


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return sentence_bert_config.json (or its older names). Raises ModelError for an unsupported setting."""
    file, settings = next(((f, found) for f in _SETTINGS if (found := checkpoint.json(f))), ("", {}))
    for key, value in settings.items():
        if key in ("max_seq_length", "do_lower_case", "unpad_inputs") or not value or value == _DEFAULTS.get(key):
            continue
        if key == "modality_config" and value.get("text") == _TEXT_OUTPUT:
            continue
        raise _refused(checkpoint, f"sets {key} = {value!r} ({file})")
    return settings


def _refused(checkpoint: Checkpoint, what: str) -> ModelError:
    return ModelError(f"model {checkpoint.name!r} {what}: the caption extractor does not do that, use another encoder")
