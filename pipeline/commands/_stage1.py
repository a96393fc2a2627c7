"""Shared options of the stage 1 commands."""

from __future__ import annotations

from typing import Any

import click


class BatchSize(click.ParamType):
    """A positive number, or "auto"."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto" or (isinstance(value, int) and value > 0):
            return value
        if str(value).isdigit() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is neither a number of items from 1 up nor 'auto'", param, ctx)


class Count(click.ParamType):
    """A positive number, also as 1e8."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            if (count := float(value)) >= 1 and count.is_integer():
                return int(value) if str(value).isdigit() else int(count)
        except (ValueError, OverflowError):
            pass
        self.fail(f"{value!r} is no number of items such as 10000000 or 1e7", param, ctx)


option_precision = click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16", "auto"]),
    help="Number format of the model's computation, part of the store's fingerprint; auto is bf16 where the "
    "device has units for it. Default: the spec's extractor.dtype.",
)
