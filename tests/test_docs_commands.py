"""Every command that the documentation shows exists, with these options and these shipped specs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest

from cli import main
from manifests.load import shipped
from manifests.table_spec import table_names
from pipeline.bench import names, sizes_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "BENCHMARKS")),
    *sorted((ROOT / "docs").glob("*.md")),
]
SPECS = sorted((ROOT / "manifests" / "specs").glob("*/*.toml"))
# Options of other programs: Dask, Slurm and its jobs, MLflow, pip
FOREIGN = {
    "--check",
    "--no-deps",
    "--name",
    "--shm-size",
    "--nworkers",
    "--nthreads",
    "--no-nanny",
    "--scheduler-file",
    "--backend-store-uri",
}
FOREIGN |= {"--nodes", "--gpus-per-node", "--ntasks-per-node", "--cpus-per-task", "--gres", "--partition", "--time"}
NAMES = {
    "ablate": shipped("ablations"),
    "table": table_names(),
    "figure": (*shipped("figures"), "diagnostics", "leakage", "memory-pays"),
}
RUNS = (
    "run",
    "train",
    "evaluate",
    "extract",
    "fit-composer",
    "fit-extractor",
    "plan",
    "validate",
    "report",
    "serve",
    "study",
    "leaks",
    "tune",
    "rerank",
    "status",
)


def text_of(page: Path) -> str:
    """The page without its list of old spellings, which are commands no more (tests/test_cli_voice.py runs them)."""
    return page.read_text(encoding="utf-8").partition("## Old spellings")[0]


def calls(text: str) -> Iterator[list[str]]:
    """The words of each command line in ``text``: after the program's name, or as inline code that begins with one."""
    text = re.sub(r"\\\n\s*#?", " ", text)
    shown = re.findall(r"(?:python cli\.py|fashion-ntm) +([a-z][^`\n#]*)", text)
    shown += [code for code in re.findall(r"`([a-z-]+ [^`\n]*)`", text) if code.split()[0] in main.commands]
    for line in shown:
        words = re.split(r"\s{3,}|, ", line)[0].replace("…", " ").split()
        if words and words[0] in main.commands:
            yield words


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = main.commands[words[0]]
    rest = words[1:]
    while isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def options_of(command: click.Command) -> set[str]:
    """With those of its commands, for a group: one of them may be what the group does by itself."""
    found = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        found |= options_of(inner)
    return found


@pytest.mark.parametrize("page", [*PAGES, *SPECS], ids=lambda page: page.name)
def test_commands_have_the_options_that_are_shown(page: Path) -> None:
    text = text_of(page)
    for words in calls(text):
        command, rest = command_of(words)
        unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - options_of(command)
        assert not unknown, f"{page.name}: {' '.join(words)}: no option {', '.join(sorted(unknown))}"
        if words[0] == "bench" and rest and rest[0] in names():
            given = [word.strip("'").partition("=")[0] for option, word in pairwise(rest) if option == "--set"]
            assert set(given) <= set(sizes_of(rest[0])), f"{page.name}: {' '.join(words)}"
        target = rest[0] if rest and not rest[0].startswith("-") else ""
        known = NAMES.get(words[0], tuple(shipped("runs")) if words[0] in RUNS else ())
        if known and re.fullmatch(r"[a-z0-9_-]+", target):
            assert target in known or target == "results", f"{page.name}: {' '.join(words)}: no spec {target}"


def test_the_pages_show_commands() -> None:
    assert len([words for page in PAGES for words in calls(page.read_text(encoding="utf-8"))]) > 60


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_an_option_that_no_command_has(page: Path) -> None:
    lines = [line for line in text_of(page).splitlines() if "pip install" not in line]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(lines)))
    assert named - options_of(main) <= FOREIGN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), f"{page.name}: {link}"
    for file in re.findall(r"`((?:manifests|cache|pipeline|tests|docs)/[\w./-]+\.(?:py|md|toml))`", text):
        assert (ROOT / file).is_file(), f"{page.name}: {file}"
