"""The `ablate` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._shared import (
    emit,
    log,
    option_data,
    option_device,
    option_json,
    option_out,
    option_set,
    parse_numbers,
)

SECTION = "stage 2"


@click.command("ablate", epilog="Example: fashion-ntm ablate table5 --dry-run --data DIR")
@click.argument("spec", metavar="SPEC")
@click.option(
    "--spec",
    "run",
    default="",
    show_default=False,
    help="Run spec whose features are used. Default: the one that SPEC names.",
)
@click.option(
    "--only",
    callback=parse_numbers,
    metavar="NUMBERS",
    help="Points of the grid by number: 3 or 1,4 or 2..5. Default: all.",
)
@click.option("--seeds", callback=parse_numbers, help="0..4 or 0,2,5. Default: those of SPEC.")
@click.option("--variant", "variants", multiple=True, metavar="LABEL", help="Dataset or composer of SPEC. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Print what would be done and how long it takes; write nothing.")
@click.option(
    "--scheduler",
    default="",
    show_default=False,
    metavar="ADDRESS",
    help="Dask scheduler that trains, e.g. tcp://host:8786.",
)
@click.option("--local-cluster", "workers", type=click.IntRange(1), help="Train in N local processes.")
@option_set
@option_data
@option_out
@option_device
@option_json
def command(
    spec: str,
    run: str,
    only: tuple[int, ...] | None,
    seeds: tuple[int, ...] | None,
    variants: tuple[str, ...],
    dry_run: bool,
    scheduler: str,
    workers: int | None,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    device: str,
    as_json: bool,
) -> None:
    """Train what is missing of ablation SPEC: a grid of options, times the seeds.

    Runs are matched by configuration, including those of `train` or of another ablation. Resumable: run the same
    command again to continue.
    """
    from pipeline.analysis.ablation.plan import plan_ablation
    from pipeline.analysis.ablation.run import ablate, open_ablation, variants_of
    from pipeline.analysis.tables import TableRequest, table_of_ablation
    from pipeline.analysis.terminal import to_text

    if scheduler and workers:
        raise click.UsageError("--scheduler and --local-cluster exclude each other: give one of them")
    place, chosen = open_ablation(spec, run, overrides, data, out, device), (only or (), seeds or ())
    plans, tables = [], []
    for part in variants_of(place, variants):
        if dry_run:
            plans.append(plan_ablation(part, *chosen))
        else:
            plans.append(ablate(part, *chosen, scheduler, workers or 0, log))
            request = TableRequest(spec, data, out, run, overrides, variant=part.variant)
            tables.append(table_of_ablation(part.ablation, part.spec, request))
    found = [plan.as_dict() for plan in plans]
    for about, table in zip(found, tables, strict=False):
        about["table"] = table.model_dump()
    text = [f"{plan.spec.name}\n{plan.text()}" if len(plans) > 1 else plan.text() for plan in plans]
    text += [to_text(table) for table in tables]
    emit(found if len(plans) > 1 else found[0], "\n\n".join(text), as_json)
