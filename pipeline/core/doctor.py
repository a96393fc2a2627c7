"""Checks of this machine against the project's requirements, each with a remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "safetensors", "h5py", "numpy", "dask", "click", "pydantic", "pillow", "rich")
DATASET_FOLDERS = ("mt_fashioniq", "shoes", "blip2_captions")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DEMO_STAMP = "demo.json"  # of a folder of demo images
EXTRAS = {  # extra -> (packages, what it brings)
    "cpu": (("numba",), "compiled steps of the CM-NTM on the CPU"),
    "plots": (("matplotlib",), "figures as files"),
    "serve": (("starlette", "uvicorn"), "the pages of `serve` and `study`"),
    "tune": (("optuna",), "`tune --sampler tpe`"),
    "parquet": (("pyarrow",), "`cache export --format parquet`"),
    "faiss": (("faiss-cpu",), "`cache export --format faiss`"),
    "gpu-decode": (("torchvision",), 'JPEG decoding on the GPU, `extractor.decode = "torchvision"`'),
    "onnx": (("onnx", "onnxruntime", "onnxscript"), "`export --format onnx`"),
    "pandas": (("pandas",), "results as a frame in Python"),
    "tensorboard": (("tensorboard",), "`train --log tensorboard`"),
    "wandb": (("wandb",), "`train --log wandb`"),
    "trackio": (("trackio",), "`train --log trackio`"),
    "mlflow": (("mlflow",), "`train --log mlflow`"),
    "adapters": (("peft",), "LoRA adapters of extractors"),
    "peers": (("lmdb", "zarr"), "storage libraries that `bench cache` compares with"),
}
FREE_BYTES = 2 << 30


@dataclass(frozen=True)
class Finding:
    """Result of one check: ``state`` is "ok", "note" (works, with a remark) or "broken"."""

    check: str
    state: str
    found: str
    fix: str = ""


def examine(out: Path, data: Path) -> dict[str, Any]:
    """Check interpreter, packages, devices, folders and disk space. Leave no files behind."""
    found = [_python(), *_packages(), *_extras(), *_devices(), _hub(), _writable(out), _disk(out), _datasets(data)]
    return {"healthy": all(f.state != "broken" for f in found), "findings": [asdict(f) for f in found]}


def examination_text(result: Mapping[str, Any]) -> str:
    found = result["findings"]
    width = max(len(f["check"]) for f in found)
    lines = [f"{f['state']:6}  {f['check']:{width}}  {f['found']}" + (f["fix"] and f"  -> {f['fix']}") for f in found]
    return "\n".join([*lines, "all is well" if result["healthy"] else "something is broken: see the lines above"])


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    ok = sys.version_info >= (3, 11)
    return Finding("python", "ok" if ok else "broken", found, "" if ok else "use Python 3.11 or newer")


def _packages() -> list[Finding]:
    missing = ("broken", "not installed", "python -m pip install -e .")
    return [Finding(name, *(("ok", version) if (version := _version(name)) else missing)) for name in PACKAGES]


def _extras() -> list[Finding]:
    findings = []
    for extra, (packages, brings) in EXTRAS.items():
        absent = [name for name in packages if not _version(name)]
        if absent:
            fix = f"python -m pip install 'fashion-ntm[{extra}]'"
            findings.append(Finding(f"[{extra}]", "note", f"{brings}: {', '.join(absent)} not installed", fix))
        else:
            there = ", ".join(f"{name} {_version(name)}" for name in packages)
            findings.append(Finding(f"[{extra}]", "ok", f"{brings}: {there}"))
    return findings


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _devices() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("device", "broken", f"torch cannot be imported: {error}", "python -m pip install -e .")]
    findings = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            findings.append(Finding(f"cuda:{number}", "ok", f"{about.name}, {about.total_memory / 2**30:.0f} GiB"))
    elif torch.backends.mps.is_available():
        findings.append(Finding("mps", "ok", "Apple GPU"))
    else:
        findings.append(Finding("device", "note", "no GPU: everything runs on the CPU, extraction takes longer"))
    return [*findings, Finding("threads", "ok", f"torch uses {torch.get_num_threads()} of {os.cpu_count()} cores")]


def _hub() -> Finding:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    if offline:
        return Finding("hub", "note", "HF_HUB_OFFLINE is set: only local folders and cached models load")
    return Finding("hub", "ok", "hub ids are downloaded at first use; local folders work offline")


def _writable(out: Path) -> Finding:
    folder = _existing(out)
    if os.access(folder, os.W_OK):
        return Finding("out", "ok", f"{out} is writable")
    return Finding("out", "broken", f"{folder} is not writable", "choose another folder with --out")


def _disk(out: Path) -> Finding:
    free = shutil.disk_usage(_existing(out)).free
    if free >= FREE_BYTES:
        return Finding("disk", "ok", f"{free / 2**30:.1f} GiB free")
    return Finding("disk", "note", f"{free / 2**30:.1f} GiB free", "a store of 100k rows of 768 float16 takes 0.15 GiB")


def _datasets(data: Path) -> Finding:
    present = [name for name in DATASET_FOLDERS if (data / name).is_dir()]
    folders = [data, *sorted(f for f in data.iterdir() if f.is_dir())] if data.is_dir() else []
    for folder in folders:
        if (folder / "sessions.jsonl").is_file() and (folder / "images.jsonl").is_file():
            present.append(f"{folder.name} (JSONL)")
        elif (folder / DEMO_STAMP).is_file():
            present.append(f"{folder.name} (rendered garments of the demo)")
        elif folder.name not in present and _has_images(folder):
            present.append(f"{folder.name} (images: a catalog for `index`)")
    if present:
        return Finding("data", "ok", f"{data} holds {', '.join(present)}")
    fix = "`fashion-ntm demo` works without; `fashion-ntm download --help` fetches annotations"
    return Finding("data", "note", f"{data} holds no dataset", fix)


def _has_images(folder: Path) -> bool:
    """Return whether an image is among the first entries of a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        return any(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES for entry in islice(entries, 200))
    return False


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
