"""Configuration files of a sentence-transformers folder; unsupported settings are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from manifests.errors import nearest
from manifests.text import on_one_line
from pipeline.extraction.hub import Checkpoint, ModelError

_MODES = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last", "max_tokens": "max"}
_KNOWN = ("mean", "cls", "last", "max")
_ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU}
# File names of all versions, in the order in which the library searches.
_KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_SETTINGS = tuple(f"sentence_{kind}_config.json" for kind in _KINDS)
_EMBEDDING = "sentence_embedding"
_TEXT_OUTPUT = {"method": "forward", "method_output_name": "last_hidden_state"}
_DEFAULTS = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}


@dataclass(frozen=True)
class SentenceConfig:
    """Settings of a sentence encoder besides its transformer.

    ``pooling``: "mean", "cls" (first token), "last" (last token) or "max". ``dense``: folders of the dense layers after
    the pooling, in order. ``normalize``: the output has unit L2 norm. ``prompt``: prepended to every text.
    ``max_length``: in tokens; None: that of the model and its tokenizer.
    """

    pooling: str = "mean"
    dense: tuple[str, ...] = ()
    normalize: bool = False
    prompt: str = ""
    max_length: int | None = None
    lower: bool = False


def sentence_config(checkpoint: Checkpoint) -> SentenceConfig:
    """Return the configuration of a sentence encoder; mean pooling for a plain transformer.

    Raises ModelError with the first setting that the caption extractor does not support.
    """
    try:
        pooling, dense, normalize = _modules(checkpoint)
        mode, with_prompt = _pooling(checkpoint, pooling)
        prompt, settings = _prompt(checkpoint), _settings(checkpoint)
    except (AttributeError, TypeError, ValueError) as error:  # a list where an object belongs, and the like
        what = f"its sentence-transformers files have a value of another type ({error}): fetch them again"
        raise checkpoint.error(what) from error
    if prompt and not with_prompt:
        what = f"leaves the prompt out of the pooling ({pooling}/config.json: include_prompt = false)"
        raise _refused(checkpoint, what)
    length = settings.get("max_seq_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise _refused(checkpoint, f"has max_seq_length = {length!r}, which is no number of tokens")
    return SentenceConfig(mode, dense, normalize, prompt, length, bool(settings.get("do_lower_case", False)))


def _modules(checkpoint: Checkpoint) -> tuple[str, tuple[str, ...], bool]:
    """Return (folder of the pooling, folders of the dense layers, whether the output is normalized) of modules.json.

    The chain is Transformer, Pooling, any number of Dense, and at most one Normalize.
    """
    found = checkpoint.json("modules.json")
    if not found:
        return "1_Pooling", (), False
    modules = found.get("")
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise _refused(checkpoint, "has a modules.json that is no list of modules")
    kinds = [str(m.get("type", "")).rsplit(".", 1)[-1] for m in modules]
    middle = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(middle) - {"Dense"}:
        extra = next((k for k in kinds if k not in ("Transformer", "Pooling", "Dense", "Normalize")), None)
        what = f"a {extra} layer" if extra else f"the modules {', '.join(kinds)}"
        known = "where Transformer, Pooling, Dense ... and Normalize are known"
        raise _refused(checkpoint, f"has {what} in modules.json, {known}")
    paths = [str(m.get("path", "")) for m in modules]
    if paths[0]:
        raise _refused(checkpoint, f"keeps its transformer in the folder {paths[0]!r} (modules.json); move it one up")
    if outside := next((p for p in paths if Path(p).is_absolute() or ".." in Path(p).parts), None):
        raise _refused(checkpoint, f"has a module outside of its folder, {outside!r} (modules.json)")
    for path in paths[1 : 2 + len(middle)]:
        if not (checkpoint.path / path / "config.json").is_file():
            raise _refused(checkpoint, f"lacks {path}/config.json, which modules.json names: fetch it again")
    for path in paths[2:]:
        about = checkpoint.json(f"{path}/config.json")
        given, made = about.get("module_input_name", _EMBEDDING), about.get("module_output_name", _EMBEDDING)
        if given != _EMBEDDING or made not in (None, _EMBEDDING):
            verb = "maps" if path in paths[2 : 2 + len(middle)] else "normalizes"
            raise _refused(checkpoint, f"{verb} something else than its sentence embedding ({path}/config.json)")
    return paths[1], tuple(paths[2 : 2 + len(middle)]), kinds[-1] == "Normalize"


def dense_layers(checkpoint: Checkpoint, folders: tuple[str, ...], width: int) -> nn.Sequential:
    """Return the dense layers in ``folders``, float32, for inputs of ``width`` values.

    Raises ModelError for an unsupported activation, or weights that are missing, pickled, or of other sizes.
    """
    layers: list[nn.Module] = []
    for folder in folders:
        about = checkpoint.json(f"{folder}/config.json")
        kind = str(about.get("activation_function") or "Tanh").rsplit(".", 1)[-1]
        if kind not in _ACTIVATIONS:
            what = f"has the activation {kind} ({folder}/config.json); {nearest(kind, _ACTIVATIONS)}"
            raise _refused(checkpoint, what)
        file = checkpoint.path / folder / "model.safetensors"
        if not file.is_file():
            fix = "(pickled weights are refused: save the model once with the current sentence-transformers)"
            raise _refused(checkpoint, f"has no {folder}/model.safetensors {fix}")
        try:
            sizes = int(about["in_features"]), int(about["out_features"])
            layer = nn.Linear(*sizes, bias=bool(about.get("bias", True)))
            layer.load_state_dict({n.removeprefix("linear."): v for n, v in load_file(file).items()})
        except Exception as error:  # KeyError, RuntimeError, SafetensorError, depending on the file
            raise _refused(checkpoint, f"has a damaged layer {folder}: {on_one_line(error, 150)}") from error
        if sizes[0] != width:
            raise _refused(checkpoint, f"has a layer {folder} for {sizes[0]} values after one of {width}")
        layers += [layer, _ACTIVATIONS[kind]()]
        width = sizes[1]
    return nn.Sequential(*layers).float().eval().requires_grad_(False)


def _pooling(checkpoint: Checkpoint, folder: str) -> tuple[str, bool]:
    """Return (pooling mode, whether the prompt's tokens are pooled too)."""
    config = checkpoint.json(f"{folder}/config.json")
    chosen = [k.removeprefix("pooling_mode_") for k, v in config.items() if k.startswith("pooling_mode_") and v]
    found = config.get("pooling_mode") or chosen or "mean"
    modes = [_MODES.get(m, m) for m in ([found] if isinstance(found, str) else found)]
    if len(modes) != 1 or modes[0] not in _KNOWN:
        what = f"pools by {' + '.join(map(str, modes))} ({folder}/config.json)"
        raise _refused(checkpoint, f"{what}, where one of {', '.join(_KNOWN)} is known")
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
