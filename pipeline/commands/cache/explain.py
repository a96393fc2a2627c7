"""The `cache explain` command."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.commands._shared import Job, emit, option_data, option_device, option_json, option_out, option_set
from pipeline.commands.cache._stores import open_request


@click.command(
    "explain",
    epilog="Example: fashion-ntm cache explain mt_fashioniq/clip-0123456789ab mt_fashioniq-clip --set extractor.dtype=float32",
)
@click.argument("words", metavar="[STORE] SPEC", nargs=-1, required=True)
@option_set
@option_data
@option_out
@option_device
@option_json
def command(
    words: tuple[str, ...], overrides: tuple[str, ...], data: Path, out: Path, device: str, as_json: bool
) -> None:
    """Explain whether STORE is the store that SPEC would use now.

    Lists the fingerprint fields that differ, stored -> requested; differences in provenance, which is not part of the
    key; and, by content, the rows that are new, changed or no longer referenced by the dataset. STORE is a path or a
    name as `ls stores` prints it. Default: the store of SPEC's last extraction. Loads the model for its fingerprint and
    runs no inference. Exit code 3 when a fingerprint field differs, else 0.
    """
    from cache import Store
    from pipeline.stores.explain import explain
    from pipeline.stores.targets import last_store, require_store

    if len(words) > 2:
        raise click.UsageError(f"expected STORE and SPEC, got {len(words)} words: {' '.join(words)}")
    request = open_request(Job(words[-1], overrides, data, out, device))
    path = require_store(words[0], out) if len(words) == 2 else last_store(request.workspace, request.spec)
    result = explain(Store.open(path), request)
    emit(result.as_dict(), result.text(), as_json)
    sys.exit(3 if result.stale else 0)
