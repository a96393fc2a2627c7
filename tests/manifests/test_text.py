"""Encodings, JSON that cannot be used, and text that is safe to show."""

from __future__ import annotations

import codecs

import pytest

from manifests.text import JsonError, brief, decode_text, parse_json, printable


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(encoding: str) -> None:
    assert decode_text("платье\r\nдва\rтри\n".encode(encoding)) == "платье\nдва\nтри\n"


def test_big_endian_text_with_its_mark() -> None:
    assert decode_text(codecs.BOM_UTF16_BE + "ü".encode("utf-16-be")) == "ü"


@pytest.mark.parametrize("data", ["a,b".encode("utf-16-le"), "ж".encode("cp1251"), codecs.BOM_UTF16_LE + b"a"])
def test_text_of_an_unknown_encoding_is_refused(data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decode_text(data)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": ' + "9" * 5000 + "}", "more than 4,300 digits"),
        ('{"a": ["x\\ud800"]}', "half of a surrogate pair"),
        ('{"\\udc00": 1}', "half of a surrogate pair"),
        ("[" * 200_000, "nested too deeply"),
        ("[1,\n]", "line 2 column 1: not valid JSON"),
    ],
)
def test_json_that_cannot_be_used_has_a_short_reason(text: str, reason: str) -> None:
    with pytest.raises(JsonError, match=reason) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"


def test_terminal_controls_are_shown_escaped() -> None:
    assert printable("a\x1b[2Jb\u202ec\x85d\u2028\ud800") == "a\\x1b[2Jb\\u202ec\\x85d\\u2028\\ud800"
    assert printable("\tПлатье, ü 裙\n") == "\tПлатье, ü 裙\n"


def test_brief_values() -> None:
    assert brief("short") == "'short'"
    assert len(brief("x" * 10_000_000)) == len(brief(list(range(100_000)))) == 100
    assert brief(10**5000) == "a very large int"
