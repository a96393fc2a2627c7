"""Loading of models from hub ids and local folders, and digests of their content."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from manifests.identity import digest, file_digest
from manifests.shapes import misfits
from manifests.text import on_one_line
from pipeline.extraction.adapters import CONFIG, adapter_weights, merge_adapter, only_adapter, without_adapter
from pipeline.extraction.checkpoint_files import (
    SIDE_FILES,
    Checkpoint,
    ModelError,
    clip_module,
    refuse_layers,
    shards,
    side_files,
    try_processor,
)

_WEIGHTS = ("model.safetensors", "model-*.safetensors", "0_CLIPModel/model.safetensors", "adapter_model.safetensors")
# Config fields that describe how it was saved and do not affect the features.
_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "_attn_implementation", "use_cache")
_ADAPTER_VOLATILE = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")
_OWN_CODE = "It comes with its own code: read it, and if you trust it set trust_remote_code = true"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate(name: str, revision: str | None = None, own_code: bool = False) -> Checkpoint:
    """Return the checkpoint of a local folder, or of a hub id after download (without network: from the hub cache).

    Raises ModelError with the id and the next step.
    """
    folder = Path(name).expanduser()
    broken = f"model folder {name!r} has no config.json: give a folder made by `save_pretrained`"
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(name) or name.startswith(("/", ".", "~")):
            raise ModelError(f"no model folder {name!r} (and it is not a hub id such as openai/clip-vit-base-patch32)")
        folder = _from_hub(name, revision, own_code)
        broken = _unreachable(name, revision, "the local copy is incomplete: it has no config.json")
    folder = clip_module(name, folder)
    if not (folder / "config.json").is_file():
        raise ModelError(only_adapter(name, folder) or broken)
    return Checkpoint(name, folder.resolve(), own_code)


def _from_hub(name: str, revision: str | None, own_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = [*SIDE_FILES, *_WEIGHTS, *(["*.py"] if own_code else [])]
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError:
        raise ModelError(f"model {name!r} has no revision {revision!r} on the hub") from None
    except GatedRepoError:
        what = "asks for its terms to be accepted on its hub page first, and for a login"
        raise ModelError(f"model {name!r} {what}") from None
    except RepositoryNotFoundError:
        raise ModelError(f"there is no model {name!r} on the hub (or it is private): check the spelling") from None
    except Exception as error:  # the HTTP library's types differ between versions; all mean "unavailable"
        raise ModelError(_unreachable(name, revision, error)) from error
    other = [n for n in shards(Checkpoint(name, path)) if not (path / n).is_file()]
    if other:  # shards under other names than save_pretrained gives them
        with contextlib.suppress(Exception):  # missing files are reported when the weights are listed
            path = Path(snapshot_download(name, revision=revision, allow_patterns=[*patterns, *other]))
    return path


def _unreachable(name: str, revision: str | None, why: object) -> str:
    which, option = (f" (revision {revision!r})", f" --revision {revision}") if revision else ("", "")
    return (
        f"model {name!r}{which} is not on this machine and cannot be downloaded ({on_one_line(why)}). Give a local folder "
        f"(--set extractor.model=DIR), or on a machine with internet run `hf download {name}{option} --local-dir DIR` and "
        "copy DIR here"
    )


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, unused: tuple[str, ...] = ()) -> Any:
    """Load the model with transformers' AutoModel: evaluation mode, no gradients, SDPA if supported.

    An adapter in the folder is merged, in float32. Raises ModelError for weights of another shape than config.json's.

    ``unused``: prefixes of weights that may be absent because no feature depends on them. Raises ModelError for any
    other missing weight: transformers would only warn and initialize it randomly.
    """
    from transformers import AutoModel

    _ = checkpoint.weights  # refuse pickles before transformers looks for them
    adapted = adapter_weights(checkpoint) is not None
    _require_class(checkpoint)
    with quiet(), _explained(checkpoint), without_adapter(checkpoint) as path:
        computed = torch.float32 if adapted else dtype
        how = _local(checkpoint) | {"use_safetensors": True, "output_loading_info": True}
        how["ignore_mismatched_sizes"] = True  # refused below, by name and shape
        try:
            model, found = AutoModel.from_pretrained(path, dtype=computed, **how)
            absent = found["missing_keys"]
            if shapes := found.get("mismatched_keys"):  # tensors: name, shape in the file, shape by config.json
                what = f"its weights are not of its config.json: {misfits(shapes)}"
                raise checkpoint.error(f"{what}; take both from one download")
        except (NotImplementedError, RuntimeError) as error:
            if not checkpoint.own_code or "meta" not in str(error):
                raise
            model, absent = _built_on_cpu(checkpoint, computed)
    missing = sorted(k for k in absent if not k.startswith(unused))
    if missing:
        own = "AutoModel" in checkpoint.json("config.json").get("auto_map", {})
        hint = f". {_OWN_CODE}" if own and not checkpoint.own_code else ""
        what = f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]!r}"
        raise checkpoint.error(f"{what}; its features would be random{hint}")
    if adapted:
        model = merge_adapter(model, checkpoint)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False).to(device)


def _built_on_cpu(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Return (model, missing weights) of a model whose own code computes with tensors while it is initialized.

    transformers initializes models without data (meta tensors), which such code refuses; here the weights are
    created on the CPU first.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(checkpoint.path, **_local(checkpoint))
    with torch.random.fork_rng(devices=[]):
        model = AutoModel.from_config(config, trust_remote_code=checkpoint.own_code)
    state = {name: value for file in checkpoint.weights for name, value in load_file(file).items()}
    found = model.load_state_dict(state, strict=False)
    return model.to(dtype), list(found.missing_keys)


def _require_class(checkpoint: Checkpoint) -> None:
    """Raise ModelError if the installed transformers has no class for the checkpoint's model type."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = checkpoint.json("config.json")
    refuse_layers(checkpoint, config)
    kind, classes = config.get("model_type"), config.get("architectures") or ["unknown class"]
    if not isinstance(kind, str) or kind in CONFIG_MAPPING or config.get("auto_map"):
        return
    saved = config.get("transformers_version")
    newer = f"pip install -U 'transformers>={str(saved).split('.dev')[0]}'" if saved else "pip install -U transformers"
    by = f", but was saved by version {saved}: {newer}" if saved else f": {newer}"
    what = f"which the installed transformers {transformers.__version__} does not have{by}"
    raise ModelError(f"model {checkpoint.name!r} is of type {kind!r} ({classes[0]}), {what}")


def _local(checkpoint: Checkpoint) -> dict[str, bool]:
    return {"trust_remote_code": checkpoint.own_code, "local_files_only": True}


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    with quiet(), _explained(checkpoint):
        return AutoTokenizer.from_pretrained(checkpoint.path, **_local(checkpoint))


def load_image_processor(checkpoint: Checkpoint) -> Any:
    """Load the image processor with its Pillow backend, so that features do not depend on torchvision."""
    from transformers import AutoImageProcessor

    with quiet(), _explained(checkpoint):
        processor = AutoImageProcessor.from_pretrained(checkpoint.path, backend="pil", **_local(checkpoint))
    if getattr(processor, "backend", "pil") != "pil":
        what = f"its image processor {type(processor).__name__} has no Pillow back end"
        raise checkpoint.error(f"{what}, so its features would depend on the torchvision that happens to be installed")
    try_processor(checkpoint, processor)
    return processor


def weights_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of all stored tensors (name, dtype, shape, bytes), sorted by name.

    Independent of path, file names, number of files and file metadata. Includes an adapter's configuration (without
    the fields about saving) and tensors.
    """
    total = hashlib.sha256()
    _add_tensors(total, checkpoint.weights)
    if adapter := adapter_weights(checkpoint):
        config = {k: v for k, v in checkpoint.json(CONFIG).items() if k not in _ADAPTER_VOLATILE}
        total.update(f"adapter\0{digest(config)}\0".encode())
        _add_tensors(total, [adapter])
    return total.hexdigest()


def _add_tensors(total: Any, paths: list[Path]) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(str(path), framework="pt")) for path in paths]
        owner = {name: file for file in files for name in file.keys()}  # noqa: SIM118  (not a dict)
        for name in sorted(owner):
            tensor = owner[name].get_tensor(name).contiguous()
            total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")


def origin(checkpoint: Checkpoint) -> dict[str, str]:
    """Return content digests, by part, of the checkpoint from which a fit starts; independent of its path."""
    others = {p.name: file_digest(p) for p in side_files(checkpoint) if p.name != "config.json"}
    return {
        "weights": weights_digest(checkpoint),
        "config": config_digest(checkpoint),
        "files": digest(others),  # tokenizer and preprocessing
    }


def config_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of config.json without the fields about saving, and of the model's own code if used."""
    value: list[Any] = [_settled(checkpoint.json("config.json"))]
    if checkpoint.own_code:
        code = sorted(checkpoint.path.rglob("*.py"))
        value.append({str(p.relative_to(checkpoint.path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in code})
    return digest(value)


def _settled(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _settled(v) for k, v in value.items() if k not in _VOLATILE}
    return value


@contextlib.contextmanager
def _explained(checkpoint: Checkpoint) -> Iterator[None]:
    """Convert transformers' errors to ModelError with the model and the next step."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # OSError, ValueError, ImportError, KeyError, SafetensorError, depending on the model
        if "trust_remote_code" in str(error) and not checkpoint.own_code:
            raise ModelError(f"model {checkpoint.name!r} cannot be loaded by itself. {_OWN_CODE}") from None
        text = f"{type(error).__name__}: {on_one_line(error, 300)}"
        raise ModelError(f"model {checkpoint.name!r} cannot be loaded: {text}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress transformers' progress bars and loading report; errors are still raised."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def plain(value: Any) -> Any:
    """Return a processor's settings as plain JSON values."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if not str(k).startswith("_")}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool | str) or value is None:
        return value
    return float(value) if isinstance(value, float) else int(value) if hasattr(value, "__int__") else str(value)
