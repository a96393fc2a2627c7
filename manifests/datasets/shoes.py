"""Multi-turn Shoes (paper section 4.1): chains of the relative captions of Guo et al. (2018) on Attribute Discovery.

    <folder>/relative_captions_shoes.json   [{"ImageName": target, "ReferenceImageName": ..., "RelativeCaption": ...}]
    <folder>/train_im_names.txt             one image name per line; an edge between two of these is a train edge
    <folder>/eval_im_names.txt              the gallery, 4,658 images; an edge between two of these is a test edge
    <captions>                              {"image name": "caption"}: BLIP-2 captions in place of the images
    <images>/**/<image name>                the images, in any subfolders

``_chains.py`` describes the rule that joins edges to sessions; ``chains`` names a published chain list to use instead.
A file without test edges gives no test session, unless ``holdout`` takes some from the train chains. "Overall" is
over all sessions together (paper Table 3).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from manifests.datasets._chains import Edge, build_chains, read_chains, to_sessions
from manifests.datasets._files import option_folders, option_path, read_captions, read_json, read_names
from manifests.datasets._images import ImageOptions, catalogue
from manifests.datasets.base import DatasetSource
from manifests.errors import Problems
from manifests.protocols import Protocol
from manifests.schema import Dataset, Gallery, Session
from manifests.validation import split_validation

CATEGORY = "shoes"
KEYS = ("ReferenceImageName", "ImageName", "RelativeCaption")


class Options(ImageOptions):
    """Paths are relative to the data folder, or absolute."""

    folder: str = "shoes"
    captions: str | None = None  # file of BLIP-2 captions in place of the images
    images: str | None = None
    chains: str | None = None  # a published chain list (JSONL) in place of the rule
    holdout: float = Field(0, ge=0)  # fraction (below 1) or number of train sessions held out as test; 0: none
    holdout_seed: int = 0
    one_turn: bool = False  # every relative caption is a session of one turn, without chains
    protocol: Protocol | None = None  # a clean split

    @field_validator("holdout")
    @classmethod
    def _part_or_number(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("expected a part below 1, or a whole number of sessions")
        return value


class Shoes(DatasetSource):
    title = "Multi-turn Shoes"
    Options = Options

    @classmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        assert isinstance(options, Options)
        root, images_root = option_folders(data, options, problems, "folder", "images")
        captions_path = options.captions and option_path(data, options.captions, problems, "captions")
        chains_path = options.chains and option_path(data, options.chains, problems, "chains")
        if root is None:
            return None
        train = read_names(root / "train_im_names.txt", problems)
        test = read_names(root / "eval_im_names.txt", problems)
        edges = _edges(root / "relative_captions_shoes.json", problems)
        captions = (read_captions(captions_path, problems) or {}) if captions_path else None
        if train is None or test is None or (problems.found and not edges):
            return None

        notes: list[str] = []
        by_split = _split_edges(edges, set(train), set(test), notes)
        if chains_path:
            sessions = read_chains(chains_path, edges, CATEGORY, problems)
            notes.append(f"sessions from the chain list {chains_path.name}")
        else:
            made = {s: [(e,) for e in e_s] if options.one_turn else build_chains(e_s) for s, e_s in by_split.items()}
            sessions = [*to_sessions(made["train"], CATEGORY, "train"), *to_sessions(made["test"], CATEGORY, "test")]
        if not sessions and not problems.found:
            problems.add("", *_nothing_joined(edges, [*train, *test]), file=root)
            return None
        gallery = test
        if not any(s.split == "test" for s in sessions):
            if options.holdout:
                gallery = train
                sessions = _hold_out(sessions, options, len(gallery), notes)
            else:
                notes.append(
                    "no test sessions: the relative captions have no edge between two eval images; use the whole "
                    "upstream file, or dataset.holdout to hold out some train sessions"
                )
        elif options.holdout:
            problems.add("key dataset.holdout", "the file has test sessions of its own", "remove this key")

        ids = dict.fromkeys([*train, *test])
        source = captions_path.name if captions_path else ""
        images_root, images = catalogue(ids, images_root, captions, problems, notes, options, source)
        if captions is not None and captions.keys().isdisjoint(ids):
            problems.add("key dataset.captions", "holds no caption of any image", file=captions_path)
        return Dataset(
            name="shoes",
            images=images,
            sessions=tuple(sessions),
            galleries=(
                Gallery(category=CATEGORY, split="train", images=tuple(train)),
                Gallery(category=CATEGORY, split="test", images=tuple(gallery)),
            ),
            images_root=images_root,
            averaging="sessions",
            notes=tuple(notes),
        )


def _edges(path: Path, problems: Problems) -> list[Edge]:
    edges = []
    for index, record in enumerate(read_json(path, problems, list) or []):
        values = [record.get(key) for key in KEYS] if isinstance(record, dict) else [None]
        if all(isinstance(value, str) and value.strip() for value in values):
            edges.append(Edge(*values))
        else:
            fix = f"expected non-empty texts for {', '.join(KEYS)}"
            problems.add(f"entry {index}", f"found {str(record)[:80]!r}", fix, file=path)
    return edges


def _split_edges(edges: list[Edge], train: set[str], test: set[str], notes: list[str]) -> dict[str, list[Edge]]:
    """Return edges by split, in file order; an edge whose images are not both in one list is dropped."""
    parts: dict[str, list[Edge]] = {"train": [], "test": []}
    for edge in edges:
        if edge.reference in train and edge.target in train:
            parts["train"].append(edge)
        elif edge.reference in test and edge.target in test:
            parts["test"].append(edge)
    if left := len(edges) - len(parts["train"]) - len(parts["test"]):
        notes.append(f"{left} of {len(edges):,} edges left out: their images are not both in one image-name list")
    return parts


def _nothing_joined(edges: list[Edge], names: list[str]) -> tuple[str, str]:
    """Return (what, fix) for a file without any chain of two edges."""
    known = set(names)
    outside = [name for edge in edges for name in (edge.reference, edge.target) if name not in known]
    what = f"no session: no two of the {len(edges):,} edges join within one image-name list"
    if outside and names:
        return (
            f"{what}; the captions name {outside[0]!r} and the lists {names[0]!r}",
            "take all files from one download",
        )
    return what, "use the whole upstream file of relative captions"


def _hold_out(sessions: list[Session], options: Options, gallery: int, notes: list[str]) -> list[Session]:
    part = options.holdout if options.holdout < 1 else options.holdout / max(len(sessions), options.holdout + 1)
    fit, held = split_validation(sessions, part, options.holdout_seed)
    notes.append(
        f"{len(held):,} of {len(sessions):,} train sessions held out as test sessions (no pair shared with the others; "
        f"seed {options.holdout_seed}); their gallery is the {gallery:,} images of train_im_names.txt. "
        "Not the paper's test split"
    )
    moved = [s.model_copy(update={"split": "test", "id": s.id.replace("/train/", "/test/", 1)}) for s in held]
    return [*fit, *moved]
