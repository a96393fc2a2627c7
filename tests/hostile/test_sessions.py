"""Datasets that leave nothing to train or to evaluate on, and reserved names: said at ``validate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from tests.hostile.makers import SPEC, captions_folder, session, write

UNTRAINED = SPEC.replace("[models.lstm]", "[models.last]\n[models.cat]\n[models.ewma]\nalpha = 0.5")
FIT = "no train sessions to fit model lstm on (add train sessions, or leave these out: last, avg, cat and ewma"


def chained(folder: Path) -> Path:
    """Train sessions that all share one (reference, target) pair: no part can be cut off."""
    first = session(0)["turns"]
    return write(folder, [session(n, turns=first, target=f"t{n}") for n in range(6)] + [session(0, split="test")])


def shoes(folder: Path) -> Path:
    folder.mkdir(parents=True)
    edges = [
        {"ReferenceImageName": f"img/{n}.jpg", "ImageName": f"img/{n + 1}.jpg", "RelativeCaption": "red"}
        for n in range(9)
    ]
    (folder / "relative_captions_shoes.json").write_text(json.dumps(edges))
    for name in ("train", "eval"):
        (folder / f"{name}_im_names.txt").write_text("".join(f"{name}{n}.jpg\n" for n in range(9)))
    return folder


SHOES = SPEC.replace('"jsonl"', '"shoes"')
FRACTION = "[validation]\nfraction = 0.1\n"
# what: (maker of data/mine, spec, exit code, the line a user gets)
CASES: dict[str, tuple[Callable[[Path], Path], str, int, str]] = {
    "no train sessions": (lambda f: captions_folder(f, train=0), SPEC, 4, f"dataset mine: {FIT}"),
    "no train sessions, none needed": (lambda f: captions_folder(f, train=0), UNTRAINED, 0, "train  no sessions"),
    "ewma without alpha": (
        lambda f: captions_folder(f, train=0),
        UNTRAINED.replace("alpha = 0.5", ""),
        4,
        "no train sessions to fit model ewma on",
    ),
    "one train session": (
        lambda f: captions_folder(f, train=1),
        SPEC,
        4,
        "dataset mine: 1 of 1 train sessions left to fit model lstm on (in-batch negatives need at least 2)",
    ),
    "no validation session": (
        chained,
        SPEC + FRACTION,
        4,
        "key validation.fraction: fraction 0.1 of 6 sessions leaves no validation session (the smallest group",
    ),
    "no seed": (captions_folder, "seeds = []\n" + SPEC, 4, "key seeds: found [] (Tuple should have at least 1 item"),
    "category overall": (
        lambda f: captions_folder(f, category="overall"),
        SPEC,
        4,
        "category 'overall': this name is taken: it is the average of all categories (rename it",
    ),
    "shoes without a matching edge": (
        shoes,
        SHOES,
        4,
        "no session: no two of the 9 edges join within one image-name list; the captions name 'img/0.jpg' and the "
        "lists 'train0.jpg' (take all files from one download)",
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_validate_says_so(tmp_path: Path, what: str) -> None:
    make, spec, code, line = CASES[what]
    make(tmp_path / "data/mine")
    (tmp_path / "mine.toml").write_text(spec)
    done = CliRunner().invoke(main, ["validate", str(tmp_path / "mine.toml"), "--data", str(tmp_path / "data")])
    assert done.exit_code == code, done.output
    assert line in done.output and (code == 0 or "1 problem found" in done.output)
