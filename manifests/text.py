"""Decode text files, parse JSON, and escape text for a terminal."""

from __future__ import annotations

import codecs
import errno
import json
import re
from pathlib import Path
from typing import Any

_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Control characters except tab and newline, lone surrogates, and bidirectional formatting marks.
_UNSHOWN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


MAX_TEXT = 2 << 30  # bytes of a text file; it is read as a whole


def read_bounded(path: Path, limit: int = MAX_TEXT) -> bytes:
    """Return the bytes of a file. Raise OSError (EFBIG) for one larger than ``limit``, such as a sparse file."""
    size = path.stat().st_size
    if size > limit:
        raise OSError(errno.EFBIG, f"the file has {size:,} bytes, limit {limit:,}", str(path))
    return path.read_bytes()


class JsonError(ValueError):
    """Invalid JSON: ``reason``, and ``place`` ("line 3 column 1") if known."""

    def __init__(self, reason: str, place: str = ""):
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason, self.place = reason, place


def decode_text(data: bytes) -> str:
    """Decode a file as UTF-8, or as UTF-16 or UTF-32 if it has their byte order mark. Drop the mark and
    convert line endings to newlines.

    Raise UnicodeDecodeError, also for zero bytes, which usually mean UTF-16 without a mark.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    text = data.decode(encoding)
    if (zero := text.find("\0")) >= 0:
        at = len(text[:zero].encode())
        raise UnicodeDecodeError(encoding, data, at, at + 1, "a zero byte: UTF-16 without a byte order mark?")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, unique: bool = False) -> Any:
    """Parse ``text`` as JSON. Raise JsonError with a short reason for any invalid text.

    ``unique``: also for a key that an object has twice, of which Python would keep the last value.

    Lone surrogates are refused: they have no encoding in files, stores and terminals.
    """
    try:
        value = json.loads(text, object_pairs_hook=_each_once if unique else None)
    except json.JSONDecodeError as error:
        raise JsonError(f"not valid JSON: {error.msg}", f"line {error.lineno} column {error.colno}") from None
    except JsonError:
        raise
    except RecursionError:
        raise JsonError("not valid JSON: nested too deeply") from None
    except ValueError:  # Python refuses to convert integers with thousands of digits
        raise JsonError("not usable JSON: it holds an integer of more than 4,300 digits") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            around = ascii(error.object[max(0, error.start - 20) : error.start + 20])
            raise JsonError(f"half of a surrogate pair, which is no character, in {around}") from None
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for n, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:n]))
        raise JsonError(f"key {brief(twice)} is there twice")
    return made


def printable(text: str) -> str:
    r"""Escape the characters of ``text`` that would control a terminal (``\x1b``, ``\u202e``).

    Tabs and newlines are kept.
    """
    return _UNSHOWN.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def on_one_line(text: object, most: int = 200) -> str:
    """Return ``str(text)``, such as an error of a library, on one line of at most ``most`` characters."""
    return " ".join(str(text).split())[:most]


def brief(value: Any) -> str:
    """Return the repr of a value from a user's file, truncated to 100 characters."""
    try:
        text = repr(value[:200] if isinstance(value, str | bytes | list | tuple) else value)
    except ValueError:  # an integer with thousands of digits
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= 100 else text[:96] + " ..."
