"""Seals: every changed byte of a sealed file and of the seal itself is found; no seal is no error."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cache.seal import SEAL, SealError, check_seal, write_seal

FILES = {"a.json": b'{"n": 12, "mean": 36.25}\n', "b.bin": bytes(range(256)) * 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "0123"
    place.mkdir()
    for name, data in FILES.items():
        (place / name).write_bytes(data)
    write_seal(place, "run", "0123", FILES)
    return place


def check(folder: Path, kind: str = "run", name: str | None = "0123", **more) -> bool:
    return check_seal(folder, kind, name, "make it again", **more)


def test_a_sealed_folder_is_whole(folder: Path) -> None:
    assert check(folder) and check(folder, name=None) and check(folder, only=["a.json"])
    assert sorted(os.listdir(folder)) == ["a.json", "b.bin", SEAL]
    (folder / "another file").write_text("does not matter")
    assert check(folder)


def test_a_folder_without_a_seal_is_not_sealed(folder: Path) -> None:
    (folder / SEAL).unlink()
    (folder / "a.json").write_text("anything")
    assert not check(folder)


@pytest.mark.parametrize("name", [*FILES, SEAL])
@pytest.mark.parametrize("aged", [False, True])
def test_every_flipped_byte_is_found(folder: Path, name: str, aged: bool) -> None:
    """Also when the file's digest is remembered from an earlier check: its stamp then says that it changed."""
    file = folder / name
    whole = file.read_bytes()
    if aged:
        for sealed in FILES:
            os.utime(folder / sealed, (time.time() - 60,) * 2)
        assert check(folder)
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SealError, match=rf"{name}.*make it again"):
            check(folder)
    file.write_bytes(whole)
    assert check(folder)


def test_the_error_names_what_differs(folder: Path) -> None:
    (folder / "b.bin").write_bytes(b"short")
    with pytest.raises(SealError, match=r"b\.bin: damaged, 5 bytes where 768 were sealed: make it again"):
        check(folder)
    (folder / "b.bin").write_bytes(FILES["b.bin"][::-1])
    with pytest.raises(SealError, match=r"b\.bin: damaged, SHA-256 [0-9a-f]{12} where [0-9a-f]{12} was sealed"):
        check(folder)
    assert check(folder, only=["a.json"])
    with pytest.raises(SealError, match=r"c\.json: not among the files of its seal"):
        check(folder, only=["c.json"])
    (folder / "b.bin").unlink()
    with pytest.raises(SealError, match=r"b\.bin: missing"):
        check(folder)
    for kind, name in (("run", "4567"), ("composer", "0123")):
        with pytest.raises(SealError, match=rf"its seal is of run 0123, not of {kind} {name}: .* copied or renamed"):
            check(folder, kind, name)


def test_a_seal_that_may_not_appear_does_not(folder: Path) -> None:
    def no() -> None:
        raise PermissionError("the lease is lost")

    before = (folder / SEAL).read_bytes()
    with pytest.raises(PermissionError):
        write_seal(folder, "run", "4567", FILES, last=no)
    assert (folder / SEAL).read_bytes() == before and len(os.listdir(folder)) == 3
