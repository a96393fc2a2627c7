"""What file systems refuse, and what the store does then."""

from __future__ import annotations

import errno
import os
import stat
import warnings
from pathlib import Path

import pytest

from cache.files import DurabilityWarning, replace_atomically, sync_directory


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Every fsync of a folder fails with ``number``; of a file it works."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_fsync_a_folder_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(monkeypatch, number)
    with pytest.warns(DurabilityWarning, match="cannot fsync a folder .*; the job continues, but after a power cut"):
        replace_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
def test_it_is_said_once_for_each_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EINVAL)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for _ in range(3):
            sync_directory(tmp_path)
    assert len(found) == 1


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="rror"):
        replace_atomically(tmp_path / "a", b"new")
