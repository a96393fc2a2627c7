"""Shared parts of the `cache` commands: resolve an argument to a store or a spec, and a spec to its request."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._shared import F, Job, option_data, option_device, option_json, option_out, option_set

if TYPE_CHECKING:
    from pipeline.stores.wanted import StoreRequest


def target_command(f: F) -> F:
    """Add STORE|SPEC, --set, --data, --out, --device and --json; call ``f`` with the first five as a ``Job``."""

    @wraps(f)
    def call(target: str, overrides: tuple[str, ...], data: Path, out: Path, device: str, **words: Any) -> Any:
        return f(Job(target, overrides, data, out, device), **words)

    argument = click.argument("target", metavar="STORE|SPEC")
    return argument(option_set(option_data(option_out(option_device(option_json(call))))))


def open_request(job: Job) -> StoreRequest:
    from pipeline.stores.wanted import request_of

    return request_of(*job.parts, job.device)


def stores_of(job: Job) -> list[Path]:
    """Return the store that the target names, or the stores of a spec's last extraction; no model is loaded."""
    from pipeline.stores.targets import is_spec, require_store

    if not is_spec(job.given, job.out):
        return [require_store(job.given, job.out)]
    note = job.workspace.extracted(job.spec)
    return [job.workspace.stores / name for name in dict.fromkeys([note.backbone, note.store]) if name]
