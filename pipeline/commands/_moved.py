"""Old spellings of commands and options. Each is answered with the command to use now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import click

from manifests.commandline import command_line

Words = Sequence[str]


class OldSpellingError(click.ClickException):
    """An old spelling; the message has the command to use now. Exit code 2, as for other errors of usage."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        click.echo(f"error: {self.message}", err=True)


@dataclass(frozen=True)
class Move:
    """Command ``old``, spelled ``new`` now.

    options: old option -> new option; "--set key=" takes the value of the old option. argument: option that the words
    of the old command are given with now. when: whether the words after the command are of the old spelling; by
    default, every call of a renamed command, and calls with one of ``options``.
    """

    old: str
    new: str
    options: Mapping[str, str] = field(default_factory=dict)
    argument: str = ""
    when: Callable[[Words], bool] | None = None

    def translate(self, words: Words) -> str | None:
        """Return the present form of a command line, or None if it is not of this old spelling."""
        name = self.old.split()
        rest = list(words[len(name) :])
        if self.when is not None:
            old = self.when(rest)
        else:
            old = self.new != self.old or any(has(option, rest) for option in self.options)
        return command_line(*self.new.split(), *self._rest(rest)) if old and list(words[: len(name)]) == name else None

    def _rest(self, rest: Words) -> list[str]:
        found: list[str] = []
        queue = list(rest)
        while queue:
            name, equals, value = queue.pop(0).partition("=")
            new = self.options.get(name, name)
            takes_value = bool(queue) and not queue[0].startswith("-")
            if new.endswith("="):
                option, _, key = new.partition(" ")
                found += [option, key + (value if equals or not takes_value else queue.pop(0))]
            elif name.startswith("-"):
                found.append(new + equals + value)
                if not equals and takes_value and self.argument:
                    found.append(queue.pop(0))
            else:
                found += [self.argument] * bool(self.argument) + [name + equals + value]
        return found


def has(option: str, words: Words) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in words)


def _out(words: Words) -> str:
    """Return the value of --out; "" without one."""
    split = [part for word in words for part in (word.split("=", 1) if word.startswith("--out=") else [word])]
    return next((value for name, value in pairwise(split) if name == "--out"), "")


def _export(rest: Words) -> bool:
    out = _out(rest)
    return has("--workspace", rest) or (bool(out) and not has("--to", rest) and not (Path(out) / "stores").is_dir())


def _bench(rest: Words) -> bool:
    """Return whether --json has a file name: a word after it, and a benchmark's name besides, or ``--json=FILE``."""
    return any(
        word.startswith("--json=") or (word == "--json" and n > 0 and rest[n + 1 : n + 2] and rest[n + 1][:1] != "-")
        for n, word in enumerate(rest)
    )


MOVES = (
    Move("cache ls", "ls stores --long"),
    Move("cache kill", "bench kill", {"--n": "--set kills=", "--seed": "--set seed=", "--folder": "--set folder="}),
    Move("diagnostics", "figure diagnostics", {"--to": "--file"}, argument="--run"),
    Move(
        "report",
        "report",
        {"--runs": "--out", "--out": "--file"},
        when=lambda rest: has("--runs", rest) or Path(_out(rest)).suffix in (".html", ".htm"),
    ),
    Move("cache export", "cache export", {"--workspace": "--out", "--out": "--to"}, when=_export),
    Move("figure", "figure", {"--run": "--spec"}, when=lambda rest: has("--run", rest) and "diagnostics" not in rest),
    Move("ablate", "ablate", {"--run": "--spec", "--plan": "--dry-run"}),
    Move("bench", "bench", {"--json": "--file"}, when=_bench),
    Move("study", "study", {"--db": "--file"}),
)


def refuse_old_spelling(words: Words) -> None:
    """Raise OldSpellingError, with the command to use now, if ``words`` are spelled as in an earlier version."""
    for move in MOVES:
        if new := move.translate(words):
            raise OldSpellingError(f"an old spelling: the command is `{new}` now")
