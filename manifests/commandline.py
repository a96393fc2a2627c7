"""Command lines that commands and errors print, in a form that can be pasted into a shell."""

from __future__ import annotations

import shlex

PROGRAM = "fashion-ntm"


def command_line(*words: str) -> str:
    """Return the program's name and ``words``, quoted for a shell."""
    return shlex.join([PROGRAM, *words])
