"""``demo``: run both stages on the rendered garments and print a table; or rebuild the model from scratch."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from manifests.commandline import command_line
from manifests.load import load_dataset, load_spec
from pipeline.analysis.cells import Table
from pipeline.analysis.render import to_text
from pipeline.analysis.tables import TableRequest, build_table
from pipeline.core.workspace import Workspace
from pipeline.demo.build import build, shipped_score
from pipeline.jobs.experiment import Experiment, Log
from pipeline.jobs.stage1 import extract_spec
from pipeline.jobs.stage2 import evaluate, outcome_text, train

NEXT = (
    ("table", "demo", "--format", "latex"),
    ("train", "demo", "--model", "cm_ntm", "--seeds", "0..4"),
    ("serve", "demo"),
    ("status", "demo"),
)
MEMORY = "FashionNTM (CM-NTM)"  # rows of the demo's table
AVERAGE = "ST + EWMA"
TRAINED = ("ST + LSTM", "ST + v-NTM", MEMORY)
WHERE = (  # measured: the pages give the numbers
    "with four times as many they are level, with twenty times as many the memory is far ahead (docs/memory-pays.md); on "
    "ChatIR's dialogues of ten facts the CM-NTM is ahead of every average (docs/dialogues.md)"
)


def demo(out: Path, device: str, log: Log) -> str:
    """Render, extract, train and evaluate as far as missing; return the last screen as text."""
    began = time.perf_counter()
    options, workspace = ["--data", str(out), "--out", str(out)], Workspace(out)
    spec = load_spec("demo", given=shlex.join(["demo", *options]))
    log("rendering the catalog (kept from an earlier demo where it is the same) ...")
    dataset = load_dataset(spec, out)
    log(f"stage 1: {len(dataset.images):,} images, {len(dataset.sessions):,} sessions")
    first = extract_spec(spec, dataset, workspace, device)
    log("stage 2: training on the cached features alone")
    experiment = Experiment(spec, dataset, workspace, device)
    for run, outcome in train(experiment):
        log(f"  {outcome_text(run, outcome)}")
    evaluate(experiment)
    table = build_table(TableRequest("demo", out, out, "demo"))
    return "\n".join(
        [
            "",
            "Stage 1",
            _indent(first.extraction.text()),
            _indent(first.composed.text()) if first.composed else "",
            "",
            "Stage 2",
            _indent(to_text(table, width=100)),
            _indent(leader_sentence(table, len(dataset.split("train")))),
            "",
            f"done in {time.perf_counter() - began:.0f} s; a second `demo` computes nothing that is here already",
            "",
            "Next:",
            *(f"  {command_line(*words, *options)}" for words in NEXT),
            f"  {command_line('ls', 'stores', '--long', '--out', str(out))}",
            f"  {command_line('download', 'mt_fashioniq')}      (real dialogues: see the README)",
        ]
    )


def leader_sentence(table: Table, sessions: int) -> str:
    """Return one sentence: the leading method, why it leads on ``sessions`` train sessions, and where a memory does."""
    place = next(n for n, column in enumerate(table.columns) if column.label == "R@5")
    values = {row.label: row.cells[place].value for row in table.blocks[0].rows}
    known = {label: value for label, value in values.items() if value is not None}
    if not known:
        return ""
    leader = max(known, key=lambda label: known[label])
    others = f" (the CM-NTM: {known[MEMORY]:.1f})" if MEMORY in known and leader != MEMORY else ""
    if leader in TRAINED:
        why = f"{sessions:,} train sessions are enough for it to learn which turns to remember"
    else:
        learned = "one number" if leader == AVERAGE else "nothing"
        why = f"it has {learned} to learn, and {sessions:,} train sessions are few for a trained memory"
    where = f"; {WHERE}" if leader not in TRAINED else ""
    return f"{leader} leads here with R@5 {known[leader]:.1f}{others}: {why}{where}."


def _indent(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.strip("\n").split("\n"))


def rebuild(out: Path, log: Log) -> str:
    """Train the demo's single-turn model from scratch into ``out/model``; return its score and the shipped one's."""
    began = time.perf_counter()
    found, shipped = build(out / "model", log), shipped_score()
    width = max(map(len, found))
    lines = [f"{'percent':{width}}  rebuilt  shipped"]
    lines += [f"{name:{width}}  {value:7.1f}  {shipped[name]:7.1f}" for name, value in found.items()]
    return "\n".join([*lines, f"written to {out / 'model'} in {time.perf_counter() - began:.0f} s"])
