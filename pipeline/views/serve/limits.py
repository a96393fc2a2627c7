"""Limits on requests and on the state of the server."""

from __future__ import annotations

from pydantic import Field

from manifests.errors import FashionNTMError
from manifests.schema import Frozen


class RequestError(FashionNTMError, ValueError):
    """An invalid request; ``status`` is its HTTP status."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


class Limits(Frozen):
    upload_bytes: int = Field(8_000_000, ge=1)
    upload_pixels: int = Field(40_000_000, ge=1)  # of an upload, and of its largest intermediate image
    upload_buffer: int = Field(64_000_000, ge=1)  # bytes of all files in memory at once
    upload_seconds: float = Field(60, gt=0)  # longest transfer of one file, or of one JSON request
    decodes: int = Field(2, ge=1)  # uploads decoded and encoded at once
    body_bytes: int = Field(16_384, ge=1)  # largest JSON request
    text: int = Field(500, ge=1)  # characters per feedback
    turns: int = Field(32, ge=1)  # per dialogue
    dialogues: int = Field(1_000, ge=1)  # kept at once; the least recently used one is dropped
    results: int = Field(50, ge=1)  # most results shown per turn
    models: int = Field(2, ge=1)  # compared side by side


def number_of(text: str) -> int:
    """Parse a number of up to 9 digits in an address. Raises RequestError (404): Python rejects thousands of digits."""
    if not text.isdecimal() or len(text) > 9:
        raise RequestError(f"there is nothing of number {text[:20]!r}", 404)
    return int(text)


def clean_text(value: object, most: int) -> str:
    """Return one line of feedback. Raises RequestError if it is not text, is empty, or is too long."""
    if not isinstance(value, str):
        raise RequestError("the feedback must be text")
    text = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    if not text:
        raise RequestError("type what should be different")
    if len(text) > most:
        raise RequestError(f"the feedback has {len(text):,} characters, at most {most:,} are read: make it shorter")
    return text
