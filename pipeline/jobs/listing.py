"""Listings of ``ls``: the components of the project, and the stores and runs of an output folder."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manifests.load import read_toml, shipped
from manifests.presets import presets
from pipeline.core.text_table import aligned

REGISTRIES = {
    "datasets": "manifests.datasets",
    "extractors": "pipeline.extraction.extractors",
    "composers": "pipeline.composition.composers",
    "models": "pipeline.training.models",
}


def listing_text(kinds: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the rows of a ``listing``, under the names of their kinds if there are several."""
    blocks = []
    for kind, rows in kinds.items():
        lines = [f"{kind}:"] if len(kinds) > 1 else []
        if kind == "runs" and rows:
            blocks.append("\n".join([*lines, runs_text(rows)]))
            continue
        indent = "  " if lines else ""
        width = max((len(row["name"]) for row in rows), default=0)
        for row in rows:
            lines.append(f"{indent}{row['name']:{width}}  {row['about']}".rstrip())
            shown = ((k, v) for k, v in row.items() if k not in ("name", "about", "cards") and v)
            lines += [f"{indent}    {k}: {_plain(v)}" for k, v in shown]
            lines += [line for card in row.get("cards", ()) for line in _card(card, f"{indent}    ")]
        blocks.append("\n".join(lines if rows else [*lines, f"{indent}none"]))
    return "\n\n".join(blocks)


def runs_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of runs: scores are the means of R@5 and R@8 in percent."""
    head = ["run", "state", "options", "spec", "date", "seed", "epochs", "validation", "test", "MB"]

    def line(row: dict[str, Any]) -> list[str]:
        state = row["state"] if row["state"] != "finished" else row["current"] + (", not sealed" * (not row["sealed"]))
        options = " ".join(f"{key}={value}" for key, value in row["differs"].items())
        scores = [row["validation"].get("mean"), row["test"].get("all", {}).get("mean")]
        numbers = [row["seed"], row["epochs"], *(None if v is None else f"{v:.1f}" for v in scores)]
        shown = ["-" if v is None else str(v) for v in numbers]
        about = [row["name"], state, options or "-", row["spec"] or "-", row["date"][:16].replace("T", " ") or "-"]
        return [*about, *shown, f"{row['bytes'] / 1e6:.1f}"]

    damaged = [f"{row['name']}: {row['damage']}" for row in rows if row["damage"]]
    return "\n".join([*aligned([head, *map(line, rows)], left=5), *damaged])


def _card(card: dict[str, Any], indent: str) -> list[str]:
    """Format a model card: the short name, then one line per known property, long lines wrapped."""
    lines = ["", f"{indent}{card['name']}"]
    for key, value in card.items():
        if key != "name" and value:
            further = f"{indent}    "
            lines += textwrap.wrap(f"{key}: {value}", 100, initial_indent=f"{indent}  ", subsequent_indent=further)
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def listing(
    kinds: Sequence[str], out: Path, detail: bool, data: Path = Path(), where: Sequence[str] = (), sort: str = ""
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each kind; heavy modules are imported only for the kinds that need them.

    A row is {"name", "about"}, with more fields for ``detail``. ``where``, ``sort``: of runs, see ``run_rows.chosen``.
    """
    found = {}
    for kind in kinds:
        if kind == "presets":
            about = {n: p.model_dump() if detail else {} for n, p in presets().items()}
            found[kind] = [{"name": n, "about": p.title, **about[n]} for n, p in presets().items()]
        elif kind in REGISTRIES:
            found[kind] = _parts(kind, detail)
        elif kind == "stores":
            found[kind] = _stores(out, detail)
        elif kind == "runs":
            found[kind] = _runs(out, data, where, sort)
        else:
            found[kind] = _specs("runs" if kind == "specs" else kind, detail)
    return found


def _specs(folder: str, detail: bool) -> list[dict[str, Any]]:
    rows = []
    for name, path in shipped(folder).items():
        values = read_toml(path)
        row = {"name": name, "about": values.get("title", "")}
        if detail:
            row |= {key: values[key]["name"] for key in ("dataset", "extractor", "composer") if key in values}
            row["models"] = list(values.get("models", {}))
        rows.append(row)
    return rows


def _parts(kind: str, detail: bool) -> list[dict[str, Any]]:
    registry = getattr(importlib.import_module(REGISTRIES[kind]), kind)
    rows = []
    for name in registry.names():
        part = registry.get(name)
        row: dict[str, Any] = {"name": name, "about": part.title}
        if detail:
            fields = part.Options.model_fields.items()
            row["options"] = {
                n: "(required)" if f.is_required() else f.get_default(call_default_factory=True) for n, f in fields
            }
            row |= _model_cards(part)
            row["file"] = Path(inspect.getfile(part)).name
        rows.append(row)
    return rows


def _model_cards(part: Any) -> dict[str, Any]:
    """Return an extractor's tables, whether it can be fitted, and a card per known published checkpoint."""
    if not hasattr(part, "cards"):
        return {}
    fitted = "fit-extractor trains it on a dataset's train triplets" if part.fittable else ""
    cards = [card.as_dict() for card in part.cards]
    return {"tables": list(part.tables), "reads": part.reads, "fitting": fitted, "cards": cards}


def _stores(out: Path, detail: bool) -> list[dict[str, Any]]:
    from cache import list_stores

    rows = []
    for store in list_stores(out / "stores"):
        counts = ", ".join(f"{table} {n:,}" for table, n in store.rows.items())
        about = store.problem or f"{counts or 'no rows yet'} ({store.nbytes / 1e6:.1f} MB)"
        row: dict[str, Any] = {"name": str(store.path.relative_to(out / "stores")), "about": about}
        if detail:
            row |= {"fingerprint": store.fingerprint, "shards": store.shards, "images": store.images}
        rows.append(row)
    return rows


def _runs(out: Path, data: Path, where: Sequence[str], sort: str) -> list[dict[str, Any]]:
    from pipeline.jobs.run_rows import Currency, chosen, differing, listed_runs

    rows = chosen(listed_runs(out / "runs", Currency(data, out)), where, sort)
    return [row | {"differs": own} for row, own in zip(rows, differing(rows), strict=True)]
