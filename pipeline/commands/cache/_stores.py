"""Shared parts of the `cache` commands: resolve an argument to a store or a spec, and a spec to its request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands._shared import F, load, open_job, option_data, option_device, option_json, option_out, option_set

if TYPE_CHECKING:
    from pipeline.stores.wanted import StoreRequest


def target_command(f: F) -> F:
    """Add STORE|SPEC, --set, --data, --out, --device and --json."""
    argument = click.argument("target", metavar="STORE|SPEC")
    return argument(option_set(option_data(option_out(option_device(option_json(f))))))


def open_request(spec: str, overrides: tuple[str, ...], data: Path, out: Path, device: str = "cpu") -> StoreRequest:
    from pipeline.stores.wanted import request_of

    job, workspace = open_job(spec, overrides, data, out)
    return request_of(job, load(job, data), workspace, device)


def stores_of(target: str, overrides: tuple[str, ...], data: Path, out: Path) -> list[Path]:
    """Return the store that ``target`` names, or the stores of a spec's last extraction; no model is loaded."""
    from pipeline.stores.targets import is_spec, require_store

    if not is_spec(target, out):
        return [require_store(target, out)]
    job, workspace = open_job(target, overrides, data, out)
    note = workspace.extracted(job)
    return [workspace.stores / name for name in dict.fromkeys([note.backbone, note.store]) if name]
