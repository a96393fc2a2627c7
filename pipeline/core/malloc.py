"""Reuse of freed memory in Dask workers. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import os

_DASKS = "65536"  # Dask's MALLOC_TRIM_THRESHOLD_ for its workers
_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
_KEPT, _LARGEST = 256 << 20, 32 << 20  # bytes; the second is the largest value that glibc accepts


def keep_freed_memory() -> bool:
    """Let a Dask worker reuse its image buffers; return whether a setting was changed.

    Dask configures glibc's malloc to return freed pages immediately, which limits the memory of a worker with many
    small tasks. A decoder requests the same buffers for every image and would get them page by page from the system
    each time. A threshold set by the user and other allocators are left unchanged.
    """
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") != _DASKS:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc
        return False
    return bool(mallopt(_TRIM, _KEPT)) and bool(mallopt(_MMAP, _LARGEST))
