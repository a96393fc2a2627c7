#!/usr/bin/env python3
"""The command line: finds the commands of ``pipeline/commands`` and turns errors into messages and exit codes."""

from __future__ import annotations

from typing import Any

import click

from pipeline.commands import commands_of

INTERRUPTED = 130


class Commands(click.Group):
    """Turns the project's errors into one clear message and the right exit code (see the epilog of --help)."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted: what was finished is kept; run the same command to resume", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if isinstance(error, click.ClickException | click.exceptions.Exit) or code is None:
                raise
            click.echo(str(error) if code == INTERRUPTED else f"error: {error}", err=True)
            ctx.exit(code)


@click.group(
    cls=Commands,
    commands=commands_of("pipeline.commands"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="SPEC is the name of a shipped spec (see `ls specs`) or a path to a .toml file. "
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 stale or incomplete, 4 invalid manifest, 130 interrupted.",
)
@click.version_option(package_name="fashion-ntm", message="%(version)s")
def main() -> None:
    """FashionNTM: multi-turn fashion image retrieval on cached features.

    Stage 1 (extract, fit-composer) runs a frozen single-turn model once and caches its features. Stage 2 (train,
    evaluate, table) fits memory models on the cache alone. Start with `demo`.
    """


if __name__ == "__main__":
    main()
