"""What becomes of memory that a worker process has freed. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import os

_DASKS = "65536"  # what Dask sets MALLOC_TRIM_THRESHOLD_ to in the workers that it starts
_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
_KEPT, _LARGEST = 256 << 20, 32 << 20  # bytes; the second is the largest value that glibc takes


def keep_freed_memory() -> bool:
    """Let a Dask worker reuse its image buffers; whether anything was changed.

    Dask has glibc's malloc give back every freed page at once, which keeps a worker of many small tasks small. A decoder
    asks for the same buffers for every image and would get them anew, page by page, from the system. A threshold that the
    user chose, and another allocator, are left alone.
    """
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") != _DASKS:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc
        return False
    return bool(mallopt(_TRIM, _KEPT)) and bool(mallopt(_MMAP, _LARGEST))
