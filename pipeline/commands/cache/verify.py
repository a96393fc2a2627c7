"""The `cache verify` command."""

from __future__ import annotations

import sys

import click

from pipeline.commands._shared import Job, emit, log
from pipeline.commands.cache._stores import open_request, stores_of, target_command


@click.command("verify", epilog="Example: fashion-ntm cache verify demo --reextract 50 --data out/demo --out out/demo")
@target_command
@click.option(
    "--reextract",
    type=click.IntRange(1),
    metavar="K",
    help="Also compute K random rows of every table again with the live model (needs SPEC), and compare them with the "
    "stored ones.",
)
@click.option("--seed", type=int, default=0, help="Which rows --reextract draws.")
@click.option(
    "--workers", type=click.IntRange(1), help="Threads that hash shards. Default: one per processor, up to 8."
)
def command(job: Job, as_json: bool, reextract: int | None, seed: int, workers: int | None) -> None:
    """Read every byte of STORE, or of the stores of SPEC, and report all damage.

    Names shard, row and next step of each finding. Checks digests, sizes, headers, counts, NaN and Inf, norms (where
    the fingerprint says unit rows), repeated keys, layout, catalogue.h5, ledger and unreferenced files. With
    --reextract, rows must match within the tolerance that the extraction recorded (1e-3 for float16 stores of float32
    models). Changes nothing. Exit code 1 on damage or mismatch.
    """
    from cache import Store, verify

    if reextract is not None:
        from pipeline.stores.targets import is_spec

        if not is_spec(job.given, job.out):
            raise click.UsageError("--reextract needs a SPEC: a store alone does not know its model and its images")
        request = open_request(job)
        paths = [wanted.path for wanted in request.stores if (wanted.path / "manifest.json").exists()]
        if not paths:
            from pipeline.stores.collect import nothing_extracted

            raise nothing_extracted(request)
    else:
        paths = stores_of(job)
    reports, lines, broken = [], [], False
    for path in paths:
        findings = verify(path, lambda file: log(f"checking {file}"), workers)
        damaged = any(f.level == "error" for f in findings)
        broken |= damaged
        report = {"store": str(path), "findings": [f.as_dict() for f in findings], "damaged": damaged}
        lines += [f"store  {path}", *map(str, findings)]
        lines.append("damaged" if damaged else "every row is whole" + ("" if not findings else "; see the notes"))
        if reextract is not None and not damaged:
            from pipeline.stores.reextract import reextract as recompute

            again = recompute(Store.open(path), request, reextract, seed)
            report["reextract"], broken = again.as_dict(), broken or not again.matches
            lines += again.text().splitlines()[1:]
        reports.append(report)
    emit(reports, "\n".join(lines), as_json)
    sys.exit(1 if broken else 0)
