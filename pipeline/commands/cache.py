"""The `cache` commands: inspect, check and maintain the stores of cached features."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._options import EXISTING_FOLDER, PATH, choice, option_device, option_inputs, option_out
from pipeline.commands._shared import Job, Printed, job_command, log, prints

if TYPE_CHECKING:
    from pipeline.stores.exports import Format
    from pipeline.stores.wanted import StoreRequest

SECTION = "cache"


@click.group("cache", epilog="Example: fashion-ntm cache verify demo --data out/demo --out out/demo")
def cache() -> None:
    """Inspect, check, repair and compare feature stores, and import and export features."""


target_command = partial(job_command, metavar="STORE|SPEC")  # ``Job.given`` is a store or a spec


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


@cache.command("diff", epilog="Example: fashion-ntm cache diff world/clip-0123456789ab world/clip-ba9876543210 --json")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@option_out
@click.option("--largest", type=click.IntRange(0), default=5, help="Rows to list of each table.")
@prints
def diff(a: str, b: str, out: Path, largest: int) -> Printed:
    """Compare stores A and B: fingerprint fields, missing rows, and rows that differ.

    Rows are matched by content key, so order and shards do not matter. A and B are paths, or names as `ls stores`
    prints them. Exit code 1 when they differ (as `diff`), else 0.
    """
    from cache import Store
    from cache.diff import diff
    from pipeline.stores.targets import require_store

    result = diff(Store.open(require_store(a, out)), Store.open(require_store(b, out)), largest)
    return result.as_dict(), result.text(), 0 if result.same else 1


@cache.command(
    "explain",
    epilog="Example: fashion-ntm cache explain mt_fashioniq/clip-0123456789ab mt_fashioniq-clip --set extractor.dtype=float32",
)
@click.argument("words", metavar="[STORE] SPEC", nargs=-1, required=True)
@option_inputs
@option_device
@prints
def explain(words: tuple[str, ...], out: Path, **options: Any) -> Printed:
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
    request = open_request(Job(words[-1], out=out, **options))
    path = require_store(words[0], out) if len(words) == 2 else last_store(request.workspace, request.spec)
    result = explain(Store.open(path), request)
    return result.as_dict(), result.text(), 3 if result.stale else 0


@cache.command(
    "export", epilog="Example: fashion-ntm cache export demo --format npy --to arrays --data out/demo --out out/demo"
)
@target_command
@click.option("--to", "folder", type=PATH, required=True, help="Folder to write; new or empty.")
@choice(
    "--format",
    "form",
    of=("npy", "safetensors", "parquet", "faiss"),
    help="parquet and faiss need the extra of that name, such as fashion-ntm[parquet].",
)
@prints
def export(job: Job, folder: Path, form: Format) -> Printed:
    """Write the features of STORE, or of SPEC's store, as arrays for other tools.

    Writes one file of features and one of ids per table, in the same order, and features.json with the fingerprint.
    With a SPEC, queries and texts are identified by words, sessions and turns; with a STORE, by image ids and content
    keys. Parquet has an id column. Reads the store in blocks. `cache import` reads npy and safetensors folders back.
    """
    from cache import Store
    from pipeline.stores.exports import export
    from pipeline.stores.targets import is_spec, require_store

    if is_spec(job.given, job.out):
        return export(job.workspace.store(job.spec, job.dataset), folder, form, job.dataset)
    return export(Store.open(require_store(job.given, job.out)), folder, form)


@cache.command(
    "gc", epilog="Example: fashion-ntm cache gc mt_fashioniq-clip --keep-for mt_fashioniq-subset.toml --dry-run"
)
@target_command
@option_device
@click.option(
    "--keep-for", "others", multiple=True, metavar="SPEC", help="Also keep the rows that this spec needs. Repeatable."
)
@click.option("--alone", is_flag=True, help="Go ahead although another spec was extracted into the same store.")
@click.option(
    "--superseded",
    is_flag=True,
    help="Also remove the stores of SPEC's dataset that no spec's last extraction names: of earlier models or options.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print what would be removed, and how many bytes; remove nothing, take no lock."
)
@prints
def gc(job: Job, others: tuple[str, ...], alone: bool, superseded: bool, dry_run: bool) -> Printed:
    """Drop rows that SPEC's dataset no longer references, and leftover files.

    With a SPEC: from all of its stores. With a STORE: the rows that no --keep-for spec needs; without --keep-for, only
    leftover files (temporary files, shards set aside, files of no manifest). The rows to keep are written to a new
    shard before the old one is deleted, so a kill at any moment loses no row. Rows of an image that cannot be read now
    are kept. Stop all readers of the store first: reading a deleted shard raises an error. --set applies to SPEC, not
    to --keep-for.
    """
    from pipeline.core.workspace import leftovers_text, remove_leftovers
    from pipeline.stores.collect import collect_specs, collect_store, remove_superseded, superseded_text
    from pipeline.stores.targets import is_spec, require_store

    of_spec, kept = is_spec(job.given, job.out), [replace(job, given=spec, overrides=()) for spec in others]
    requests = [open_request(one) for one in ([job, *kept] if of_spec else kept)]
    if of_spec:
        results = collect_specs(requests, dry_run=dry_run, alone=alone)
    else:
        results = [collect_store(require_store(job.given, job.out), requests, dry_run=dry_run, alone=alone)]
    found, lines = [result.as_dict() for result in results], [result.text() for result in results]
    if superseded:
        if not of_spec:
            raise click.UsageError("--superseded needs a SPEC, whose dataset is meant")
        removed = remove_superseded(job.workspace, job.dataset.name, dry_run=dry_run)
        found += [{"superseded": store, "dry_run": dry_run} for store in removed]
        lines.append(superseded_text(removed, dry_run))
    if leftovers := remove_leftovers(job.out, dry_run=dry_run):
        found.append({"leftovers": leftovers, "dry_run": dry_run})
        lines.append(leftovers_text(leftovers, dry_run))
    return found, "\n".join(lines)


@cache.command("import", epilog="Example: fashion-ntm cache import arrays demo --data out/demo --out out/mine")
@click.argument("folder", metavar="DIR", type=EXISTING_FOLDER)
@job_command
@click.option("--normalise", is_flag=True, help="Scale the rows to unit L2 norm. Default: keep every bit.")
@click.option(
    "--no-concatenated",
    is_flag=True,
    help="The arrays have no query of all captions as one text (turn 0); every model but `cat` works without.",
)
@click.option("--partial", is_flag=True, help="Import what is there; name the rows that are missing or unknown.")
@prints
def import_(job: Job, folder: Path, normalise: bool, no_concatenated: bool, partial: bool) -> Printed:
    """Make a store for SPEC from your own feature arrays in DIR, in place of its extractor.

    DIR holds query.npy and target.npy, float16 or float32 [rows, D] (or .safetensors; or image and text, for a
    composer), each with <table>.ids.txt or .ids.jsonl, one line per row: image ids for target, session<TAB>turn for
    query (turns from 1; 0 for all captions of the session as one text). Everything is checked first (dtype, shape,
    NaN, repeated ids, unknown ids, missing rows) and reported together. The fingerprint is the digest of the arrays.

    --set accepts the options of extractor "imported" (contaminated_on, store_dtype, ...), and no others.
    """
    from pipeline.stores.imports import import_features

    words = {"extractor.name": "imported", "extractor.folder": json.dumps(str(folder))}
    words |= {"extractor.normalise": "true"} if normalise else {}
    words |= {"extractor.concatenated": "false"} if no_concatenated else {}
    for override in job.overrides:
        if (key := override.partition("=")[0].strip()) in words:
            raise click.UsageError(f"--set {override}: DIR and the options of this command set {key} to {words[key]}")
    job = replace(job, overrides=(*job.overrides, *(f"{key}={value}" for key, value in words.items())))
    return import_features(*job.parts, partial)


@cache.command("repair", epilog="Example: fashion-ntm cache repair mt_fashioniq-clip --data data --out out")
@target_command
@option_device
@prints
def repair(job: Job) -> Printed:
    """Remove damaged parts of STORE, or of the stores of SPEC, and recompute only those.

    A damaged shard is set aside (never deleted), and the rows of a damaged or missing shard become missing. A renamed or
    swapped shard gets its name back. NaN rows and repeated keys are removed. A lost manifest is rebuilt from the shards
    that the ledger confirms. With a SPEC, the missing rows are then extracted; with a STORE, the command for this is
    printed. Valid rows are never changed. Exit code 3 while rows are still to be extracted, 1 when damage remains.
    """
    from cache.repair import repair
    from pipeline.stores.repair import filling_command, repair_spec
    from pipeline.stores.targets import is_spec, require_store

    if is_spec(job.given, job.out):
        done = repair_spec(*job.parts, job.device)
        return done.as_dict(), done.text(), 0 if done.whole else 1
    path = require_store(job.given, job.out)
    one = repair(path)
    text, values = one.text(), one.as_dict()
    if one.rows_lost or one.actions:
        values["next"] = filling_command(job.workspace, path, job.data)
        text += f"\nnext: {values['next']}"
    return values, text, 1 if one.left else 3 if one.rows_lost else 0


@cache.command("verify", epilog="Example: fashion-ntm cache verify demo --reextract 50 --data out/demo --out out/demo")
@target_command
@option_device
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
@prints
def verify(job: Job, reextract: int | None, seed: int, workers: int | None) -> Printed:
    """Read every byte of STORE, or of the stores of SPEC, and report all damage.

    Names shard, row and next step of each finding. Checks digests, sizes, headers, counts, NaN and Inf, norms (where
    the fingerprint says unit rows), repeated keys, layout, catalogue.h5, ledger and unreferenced files. With
    --reextract, rows must match within the tolerance that the extraction recorded (1e-3 for float16 stores of float32
    models). Changes nothing. Exit code 1 on damage or mismatch.
    """
    from cache import Store, verify
    from pipeline.stores.targets import is_spec

    if reextract is not None:
        from pipeline.stores.collect import extracted_stores
        from pipeline.stores.reextract import reextract as recompute

        if not is_spec(job.given, job.out):
            raise click.UsageError("--reextract needs a SPEC: a store alone does not know its model and its images")
        request = open_request(job)
        paths = extracted_stores(request)
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
            again = recompute(Store.open(path), request, reextract, seed)
            report["reextract"], broken = again.as_dict(), broken or not again.matches
            lines += again.text().splitlines()[1:]
        reports.append(report)
    return reports, "\n".join(lines), 1 if broken else 0
