"""Admission control of uploads, so that many large ones at once cannot exhaust the memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TypeVar

import anyio
from starlette.requests import Request

from pipeline.views.serve.limits import Limits, RequestError

T = TypeVar("T")


class Uploads:
    """``held``: bytes of all uploaded files in memory now, at most ``limits.upload_buffer``."""

    def __init__(self, limits: Limits):
        self.limits, self.held = limits, 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the uploaded file; its bytes count against the buffer until the block ends.

        Raises RequestError: 413 for a file that is too large, 503 while the buffer is full, 408 for a transfer longer
        than ``limits.upload_seconds``.
        """
        limits, parts, size = self.limits, [], 0
        large = f"the file is larger than {limits.upload_bytes / 1e6:.0f} MB: make it smaller"
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > limits.upload_bytes):
            raise RequestError(large, 413)
        try:
            with anyio.move_on_after(limits.upload_seconds) as waiting:
                async for part in request.stream():
                    size += len(part)
                    self.held += len(part)
                    if size > limits.upload_bytes:
                        raise RequestError(large, 413)
                    if self.held > limits.upload_buffer:
                        raise RequestError("too many images are uploaded at once: try again in a moment", 503)
                    parts.append(part)
            if waiting.cancelled_caught:
                raise RequestError(f"the file did not arrive in {limits.upload_seconds:g} seconds: try again", 408)
            yield b"".join(parts)
        finally:
            self.held -= size

    async def decoded(self, work: Callable[[], T]) -> T:
        """Run ``work``, which decodes and encodes an image, in one of ``limits.decodes`` threads; others wait."""
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    @cached_property
    def _threads(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(self.limits.decodes)
