"""Text as users have it: decoding of files, JSON, and what of a text may be shown on a terminal."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Control characters but tab and newline, lone surrogates, and the marks that reorder what follows them.
_UNSHOWN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """A text is not usable JSON: ``reason``, and ``place`` ("line 3 column 1") where it is known."""

    def __init__(self, reason: str, place: str = ""):
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason, self.place = reason, place


def decode_text(data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 where a byte order mark says so. The mark is dropped and
    every line ends in a newline alone.

    Raises UnicodeDecodeError; also for zero bytes, which are UTF-16 without a mark far more often than text.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    text = data.decode(encoding)
    if (zero := text.find("\0")) >= 0:
        at = len(text[:zero].encode())
        raise UnicodeDecodeError(encoding, data, at, at + 1, "a zero byte: UTF-16 without a byte order mark?")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str) -> Any:
    """The JSON value of ``text``. Raises JsonError with a short reason, whatever is wrong with it.

    Lone surrogates are refused: no file, store or terminal can hold them as text.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise JsonError(f"not valid JSON: {error.msg}", f"line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise JsonError("not valid JSON: nested too deeply") from None
    except ValueError:  # Python refuses to convert integers of thousands of digits
        raise JsonError("not usable JSON: it holds an integer of more than 4,300 digits") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            around = ascii(error.object[max(0, error.start - 20) : error.start + 20])
            raise JsonError(f"half of a surrogate pair, which is no character, in {around}") from None
    return value


def printable(text: str) -> str:
    r"""``text`` with the characters that would steer a terminal written as escapes (``\x1b``, ``\u202e``).

    Tabs and newlines stay.
    """
    return _UNSHOWN.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def brief(value: Any, width: int = 100) -> str:
    """The repr of a value found in a user's file, cut to ``width`` characters."""
    try:
        text = repr(value[: 2 * width] if isinstance(value, str | bytes | list | tuple) else value)
    except ValueError:  # an integer of thousands of digits
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= width else text[: width - 4] + " ..."
