"""Tuned specs on disk: ``tune`` seals the spec that it writes, and the seal is checked when it is read by path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cache.files import replace_atomically
from cache.seal import check_seal, write_seal
from manifests.load import load_spec, shipped
from manifests.schema import RunSpec

KIND = "tuned options"
MARK = "-tuned-"  # <spec>-tuned-<model>.toml
AGAIN = "run `tune` again, which writes it again from its trials; to change it by hand, copy it to another folder"


def save_tuned(path: Path, text: str) -> None:
    replace_atomically(path, text.encode())
    write_seal(path.parent, KIND, path.parent.name, [path.name])


def read_spec(name: str, overrides: Sequence[str] = (), given: str = "") -> RunSpec:
    """Return ``load_spec``'s result. Also raises SealError for a tuned spec modified after ``tune`` wrote it."""
    path = Path(name)
    if name not in shipped("runs") and MARK in path.stem and path.is_file():
        folder = path.resolve().parent
        check_seal(folder, KIND, folder.name, AGAIN, only=[path.name])
    return load_spec(name, overrides, given)
