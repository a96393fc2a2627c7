"""The `push` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import log, option_out, show

SECTION = "results"


@click.command("push", epilog="Example: fashion-ntm push 3f2a --to user/name --out out/demo")
@click.argument("run", metavar="RUN")
@click.option("--to", required=True, metavar="USER/NAME", help="Model on the Hugging Face hub; created if absent.")
@click.option("--private", is_flag=True, help="Create the model as private; refused for a public one.")
@option_out
def command(run: str, to: str, private: bool, out: Path) -> None:
    """Upload RUN with its weights, results and model card to the Hugging Face hub. Log in first: `hf auth login`.

    Local paths in its spec are published as their last part.
    """
    from pipeline.export.hub import push_run
    from pipeline.jobs.named_runs import run_named

    show(push_run(run_named(run, out / "runs"), to, private, log))
