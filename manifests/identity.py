"""Canonical digests: equal content has an equal key on any machine, and any change gives another key.

Content keys are the first 16 bytes of a SHA-256, stored as rows of uint8 arrays [n, 16]; fingerprints are hex.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from manifests.schema import Session

KEY_BYTES = 16


def digest(value: Any) -> str:
    """Return the SHA-256 (64 hex digits) of a JSON-like value, independent of the order of its keys.

    Raise TypeError for values without a canonical JSON form; ValueError for NaN.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _key(kind: bytes, *parts: bytes) -> bytes:
    return hashlib.sha256(kind + b"\0" + b"\0".join(parts)).digest()[:KEY_BYTES]


def _bytes(text: str) -> bytes:
    """Encode as UTF-8; lone surrogates, which JSON files may contain, are encoded too instead of an error."""
    return text.encode("utf-8", errors="surrogatepass")


def image_key(data: bytes) -> bytes:
    """Return the content key of an image file's bytes; the name and times of the file do not matter."""
    return _key(b"image", data)


def caption_key(caption: str) -> bytes:
    """Return the content key of a caption that replaces an image."""
    return _key(b"caption", _bytes(caption))


NO_IMAGE_KEY = _key(b"no image")  # of the reference of a text-only turn


def text_key(text: str) -> bytes:
    """Return the content key of a feedback text."""
    return _key(b"text", _bytes(text))


def pair_key(image: bytes, text: bytes) -> bytes:
    """Return the content key of a query from its (image or caption key, text key)."""
    return _key(b"pair", image, text)


def dialog_key(pairs: Sequence[bytes]) -> bytes:
    """Return the content key of a whole dialog as one query, from the pair keys of its turns; one turn is its pair."""
    return pairs[0] if len(pairs) == 1 else _key(b"dialog", *pairs)


def session_key(session: Session, catalogue: Mapping[str, bytes]) -> bytes:
    """Return the 32-byte content key of a session: category, and each turn's reference, text and target (no id).

    ``catalogue``: image id -> content key. The id replaces a missing key.
    """
    parts = [_bytes(session.category)]
    for reference, text, target in session.triplets:
        images = (catalogue.get(i) or b"?" + _bytes(i) for i in (reference, target))
        parts += [*images, text_key(text)]
    hasher = hashlib.sha256(b"session\0")
    for part in parts:
        hasher.update(len(part).to_bytes(4, "little") + part)
    return hasher.digest()


def stack_keys(keys: Iterable[bytes]) -> np.ndarray:
    """Stack keys into one uint8 array [n, 16]."""
    joined = b"".join(keys)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, KEY_BYTES).copy()


def flat(value: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys, e.g. {"model.options.stages": 2}."""
    found: dict[str, Any] = {}
    for key, part in value.items():
        if isinstance(part, Mapping):
            found |= flat(part, separator, f"{prefix}{key}{separator}")
        else:
            found[f"{prefix}{key}"] = part
    return found


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return a line ``field: old -> new`` for each fingerprint field that differs, nested fields by dotted name."""
    lines: list[str] = []

    def walk(prefix: str, a: Any, b: Any) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(a.keys() | b.keys()):
                walk(f"{prefix}.{key}" if prefix else str(key), a.get(key), b.get(key))
        elif a != b:
            lines.append(f"{prefix}: {_short(a)} -> {_short(b)}")

    walk("", old, new)
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
