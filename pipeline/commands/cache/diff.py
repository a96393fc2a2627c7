"""The `cache diff` command."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.commands._shared import emit, option_json, option_out


@click.command("diff", epilog="Example: fashion-ntm cache diff world/clip-0123456789ab world/clip-ba9876543210 --json")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@option_out
@click.option("--largest", type=click.IntRange(0), default=5, help="Rows to list of each table.")
@option_json
def command(a: str, b: str, out: Path, largest: int, as_json: bool) -> None:
    """Compare stores A and B: fingerprint fields, missing rows, and rows that differ.

    Rows are matched by content key, so order and shards do not matter. A and B are paths, or names as `ls stores`
    prints them. Exit code 1 when they differ (as `diff`), else 0.
    """
    from cache import Store
    from cache.diff import diff
    from pipeline.stores.targets import require_store

    result = diff(Store.open(require_store(a, out)), Store.open(require_store(b, out)), largest)
    emit(result.as_dict(), result.text(), as_json)
    sys.exit(0 if result.same else 1)
