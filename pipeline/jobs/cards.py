"""Model card of a run: README.md in its folder, with settings, metrics, data, leaks and the extractor's license.

The card is not sealed and not part of a run's identity: it can be edited, and is written again by ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.files import replace_atomically
from manifests.identity import digest
from manifests.leaks import SUBSETS
from pipeline.core.text_table import markdown
from pipeline.core.workspace import FeatureRecord
from pipeline.jobs.run_rows import run_row
from pipeline.training.runs import RunFolder

CARD = "README.md"
METRICS = ("R@1", "R@5", "R@8", "R@10", "R@50", "MRR", "mean")
MARK = "<!-- fashion-ntm card "  # with a digest: an edited card is kept


def write_card(folder: RunFolder, title: str, record: FeatureRecord | None) -> bool:
    """Write the card of a run unless its owner has edited it; return whether it was written.

    ``title``: the model's title. ``record``: of the spec's extraction, for the extractor's license and leaks.
    """
    path = folder.path / CARD
    if path.is_file():
        body, mark, end = path.read_text(encoding="utf-8", errors="replace").rpartition("\n" + MARK)
        if not mark or end.partition(" ")[0] != digest(body)[:16]:  # edited
            return False
    text = card_text(run_row(folder), title, record)
    replace_atomically(path, f"{text}\n{MARK}{digest(text)[:16]} -->\n".encode())
    return True


def card_text(row: Mapping[str, Any], title: str, record: FeatureRecord | None) -> str:
    """Return the card as Markdown with the metadata block that model hubs read."""
    tags = "[composed-image-retrieval, multi-turn-retrieval, fashion]"
    lines = ["---", "library_name: fashion-ntm", f"tags: {tags}", "---", ""]
    lines += [f"# {title}: {row['dataset']}, run {row['id']}", ""]
    lines += ["A memory model f_qry(1..N) -> f'_qry(1..N) for multi-turn image retrieval on cached features.", ""]
    settings = {"model": row["model"], **row["options"], "seed": row["seed"]}
    settings |= {f"training.{key}": value for key, value in row["training"].items()}
    settings |= {key: row[key] for key in ("epochs", "parameters") if row[key] is not None}
    lines += [*markdown([["setting", "value"], *([key, f"`{value}`"] for key, value in settings.items())], left=2), ""]
    lines += ["## Results", "", *_scores(row), ""]
    lines += ["## Data", "", *_data(row, record), ""]
    lines += ["## Use", "", "```python", "from pipeline.api import Engine", ""]
    lines += ['engine = Engine.open("FOLDER OF THIS RUN", data="data")', "```", ""]
    return "\n".join(lines)


def _scores(row: Mapping[str, Any]) -> list[str]:
    if not row["test"]:
        return ["Not evaluated yet: run `evaluate` on its spec."]
    rows = [
        [name, *(f"{found[m]:.1f}" if m in found else "-" for m in METRICS), f"{found['n']:,}"]
        for name, found in row["test"].items()
    ]
    notes = ["Final-turn retrieval of the test sessions, in percent; mean: of R@5 and R@8."]
    if len({found["n"] for found in row["test"].values()}) > 1:
        clean = f'"{SUBSETS[1]}" and "{SUBSETS[2]}"'
        notes.append(f"Some test pairs are also train pairs: rely on {clean}, which leave such sessions out.")
    return [*markdown([["sessions", *METRICS, "n"], *rows]), "", " ".join(notes)]


def _data(row: Mapping[str, Any], record: FeatureRecord | None) -> list[str]:
    card = record.card if record is not None else {}
    kind = {"caption": "captions in place of the images", "imported": "imported features"}
    gallery = kind.get(record.gallery, "images") if record is not None else "not recorded"
    source = str(card.get("source") or "not recorded")
    source = f"a local folder `{Path(source).name}`" if Path(source).is_absolute() else source
    leaked = ", ".join(record.contaminated_on) if record is not None else ""
    return [
        f"- dataset: {row['dataset']} (spec `{row['spec']}`); gallery: {gallery}",
        f"- features: store `{row['store'][:12]}`",
        f"- single-turn model: {source}; license: {card.get('licence') or 'not recorded'}",
        f"- the single-turn model was trained on pairs of: {leaked or 'none of the known datasets'}",
    ]
