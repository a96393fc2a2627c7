"""``splits``: the clean splits of a dataset, checked for leaks, and their published lists."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.files import replace_atomically
from manifests.leaks import overlaps
from manifests.protocols import PROTOCOLS, RULES, SplitList, apply_protocol, published, split_list
from manifests.schema import Dataset
from pipeline.core.text_table import aligned


@dataclass(frozen=True)
class CheckedSplit:
    """A clean split with the number of test sessions that still share a pair or their target image with train."""

    list: SplitList
    any_pair: int
    target_image: int
    state: str  # "published", "differs from the published list" or "not published"

    def as_dict(self) -> dict[str, Any]:
        found = {"any_pair": self.any_pair, "target_image": self.target_image}
        return self.list.as_dict() | {"shared": found, "state": self.state}


def clean_splits(dataset: Dataset) -> list[CheckedSplit]:
    """Return every clean split of a dataset that is loaded without a protocol, checked over the whole dataset."""
    splits = []
    for protocol in PROTOCOLS:
        made, known = split_list(dataset, protocol), published(dataset.name, protocol)
        has = overlaps(apply_protocol(dataset, protocol), "dataset").values()
        any_pair, target = (sum(name in found for found in has) for name in ("any pair", "target image"))
        state = "not published"
        if known is not None:
            state = "published" if known["digest"] == made.digest else "differs from the published list"
        splits.append(CheckedSplit(made, any_pair, target, state))
    return splits


def splits_text(splits: list[CheckedSplit]) -> str:
    """Format the splits: sessions kept, test sessions that share something with train, digest, rule."""
    head = ["protocol", "train", "test", "share a pair", "share the target", "digest", "list"]
    rows = []
    for s in splits:
        counts = (*s.list.kept, s.any_pair, s.target_image)
        rows.append([s.list.protocol, *(f"{n:,}" for n in counts), s.list.digest[:12], s.state])
    rules = [f"{s.list.protocol}: {RULES[s.list.protocol]}" for s in splits]
    return "\n".join([*aligned([head, *rows]), "", *rules])


def write_splits(splits: list[CheckedSplit], folder: Path) -> list[Path]:
    """Write ``<dataset>-<protocol>.json`` for each split; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for split in splits:
        path = folder / f"{split.list.dataset}-{split.list.protocol}.json"
        text = json.dumps(split.list.as_dict(), indent=1, ensure_ascii=False) + "\n"
        replace_atomically(path, text.encode())
        written.append(path)
    return written
