"""Push a run folder to a model hub, and pull one into the output folder."""

from __future__ import annotations

import errno
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

from cache.seal import SEAL, SealError, check_seal, write_seal
from manifests.errors import FashionNTMError, IncompleteError, ManifestError, Problem
from manifests.load import portable
from pipeline.training.checkpoint import RUN, TRAIN_AGAIN, load_model
from pipeline.training.runs import RunFolder

FILES = (
    *("run.json", "metrics.jsonl", "diagnostics.jsonl", "model.json", "model.safetensors", "seal.json", "README.md"),
    *("summary.json", "results.h5", "results.seal.json"),
)
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class HubError(IncompleteError):
    """The hub cannot be reached, or refuses."""


def push_run(folder: RunFolder, to: str, private: bool = False, say: Callable[[str], None] = lambda line: None) -> str:
    """Upload the files of a finished run to the hub as model ``to`` ("user/name"); return its address.

    Local paths in the run's spec are published as their last part, and named in ``say``. Raises ManifestError for
    another form of name, IncompleteError for an unfinished run, HubError also for a public model with ``private``.
    """
    _check_name(to, "--to")
    if folder.state != "finished":
        raise IncompleteError(f"run {folder.id} is {folder.state}: finish it with `train` first")

    def upload(files: Path) -> str:
        from huggingface_hub import HfApi

        api = HfApi()
        address = api.create_repo(to, private=private or None, exist_ok=True)
        if private and not api.repo_info(to).private:
            what = f"push {to}: the model exists and is public, so nothing was uploaded"
            raise HubError(f"{what}: name another with --to")
        message = f"{folder.model} run {folder.id}"
        api.upload_folder(repo_id=to, folder_path=files, allow_patterns=list(FILES), commit_message=message)
        return str(address)

    with tempfile.TemporaryDirectory() as place:
        for line in published(folder, Path(place)):
            say(line)
        return _reach(lambda: upload(Path(place)), f"push {to}")


def published(folder: RunFolder, to: Path) -> list[str]:
    """Copy the files of a run to ``to``, with each local path of its spec cut to its last part; return a line for each."""
    for name in FILES:
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, to / name)
    record = folder.record()
    local: dict[str, str] = {}
    spec = record.get("spec")
    record["spec"] = _cut(portable(spec), local, "spec")
    if record["spec"] == spec:
        return []
    (to / "run.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    card = to / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        for path in local.values():
            text = text.replace(path, _last(path))
        card.write_text(text, encoding="utf-8")
    if (to / SEAL).is_file():
        write_seal(to, RUN, folder.id, json.loads((to / SEAL).read_text(encoding="utf-8"))["files"])
    return [f"{key}: the local path {path} is published as {_last(path)}" for key, path in local.items()]


def _cut(value: Any, local: dict[str, str], key: str) -> Any:
    """Return ``value`` with its local paths cut, and enter them in ``local`` by their key."""
    if isinstance(value, dict):
        return {name: _cut(part, local, f"{key}.{name}") for name, part in value.items()}
    if isinstance(value, list):
        return [_cut(part, local, f"{key}.{place}") for place, part in enumerate(value)]
    if isinstance(value, str) and (value.startswith(("/", "~", "../")) or PureWindowsPath(value).drive):
        local[key] = value
        return _last(value)
    return value


def _last(path: str) -> str:
    return PureWindowsPath(path).name or "local"


def pull_run(name: str, runs: Path, revision: str | None = None) -> RunFolder:
    """Download model ``name`` ("user/name") and install it below ``runs``. Raises as ``push_run`` and ``install_run``."""
    _check_name(name, "NAME")

    def download(to: str) -> None:
        from huggingface_hub import snapshot_download

        snapshot_download(name, revision=revision, local_dir=to, allow_patterns=list(FILES))

    with tempfile.TemporaryDirectory() as place:
        _reach(lambda: download(place), f"pull {name}")
        return install_run(Path(place), runs)


def install_run(folder: Path, runs: Path) -> RunFolder:
    """Copy the files of a run to ``<runs>/<dataset>/<model>/<id>`` after their seal was checked.

    Raises FashionNTMError if the folder holds no finished, sealed run, or the run exists there with other weights.
    """
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        dataset, model, run = record["dataset"], record["identity"]["model"]["name"], record["id"]
        parts = [str(part) for part in (dataset, model, run)]
        if record.get("finished") is None or not all(re.fullmatch(r"[A-Za-z0-9][\w.-]*", part) for part in parts):
            raise ValueError("not a finished run")
        sealed = check_seal(folder, RUN, run, TRAIN_AGAIN)
    except (OSError, ValueError, KeyError, TypeError, SealError) as error:
        raise FashionNTMError(f"no run of this project, or damaged ({error}): pull another revision") from None
    if not sealed:
        raise FashionNTMError("the run has no seal, so changed files could not be noticed: push it again")
    target = RunFolder.of(runs, *parts)
    if target.state == "finished":
        if target.record()["identity"] == record["identity"] and _weights(target.path) == _weights(folder):
            return target
        raise FashionNTMError(f"{target.path} exists with other weights: remove it first (`runs rm {run}`)")
    target.path.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if name != "seal.json" and (folder / name).is_file():
            shutil.copyfile(folder / name, target.path / name)
    shutil.copyfile(folder / "seal.json", target.path / "seal.json")
    load_model(target.path)
    return target


def _weights(folder: Path) -> Any:
    return json.loads((folder / "model.json").read_text(encoding="utf-8")).get("sha256")


def _check_name(name: str, place: str) -> None:
    if not NAME.fullmatch(name):
        raise ManifestError([Problem(place, name, "not a name on the hub", "write user/name")])


def _reach(call: Callable[[], Any], what: str) -> Any:
    """Call the hub. Raises HubError, in one line with the next step, for every way in which that fails."""
    try:
        return call()
    except FashionNTMError:
        raise
    except ImportError as error:
        raise HubError(f"{what}: needs huggingface_hub ({error}): python -m pip install huggingface_hub") from None
    except Exception as error:  # of huggingface_hub and its HTTP library, which have no common base
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        first = str(error).strip().split("\n")[0][:200] or type(error).__name__
        kind, code = type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)
        if kind == "RevisionNotFoundError":
            raise HubError(f"{what}: the model has no such revision: check --revision") from None
        if kind == "RepositoryNotFoundError":
            fix = "check the name, or log in with `hf auth login`"
            raise HubError(f"{what}: no model of this name, or a private one: {fix}") from None
        if code in (401, 403) or kind == "LocalTokenNotFoundError":
            step = "log in with `hf auth login`, with a token that may write"
        elif code is not None:
            step = "try again later"
        else:
            step = "check the network, and that HF_HUB_OFFLINE is not set"
        raise HubError(f"{what}: the hub was not reached or refused ({first}): {step}") from None
