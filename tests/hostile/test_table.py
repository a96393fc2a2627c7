"""One table of bad inputs: input, command, exit code, and the line that a user gets; docs/bad-input.md shows it.

``python -m tests.hostile.test_table`` writes the table into the page.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from tests.hostile import makers as make
from tests.hostile.makers import SPEC, captions_folder

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/bad-input.md"
UNTRAINED = SPEC.replace("[models.lstm]", "[models.last]\n[models.cat]\n[models.ewma]\nalpha = 0.5")
FRACTION = "[validation]\nfraction = 0.1\n"
IMAGES = SPEC.replace('name = "caption"', 'name = "clip"').replace(
    'model = "none"', 'model = "package:pipeline/demo/model"'
)


@dataclass(frozen=True)
class Case:
    """``make`` writes the data folder ``mine``. ``line``: a part of one line of the output; FOLDER is the test's folder."""

    kind: str
    what: str
    make: Callable[[Path], object]
    line: str
    exit: int = 4
    spec: str = SPEC
    encoding: str = "utf-8"
    command: str = "validate mine.toml"


def text(name: str, content: str | bytes, encoding: str = "utf-8") -> Callable[[Path], None]:
    """A sound dataset with one file replaced."""

    def write(folder: Path) -> None:
        captions_folder(folder)
        (folder / name).write_bytes(content.encode(encoding) if isinstance(content, str) else content)

    return write


def sessions(**changes: object) -> Callable[[Path], object]:
    return lambda folder: captions_folder(folder, **changes)  # type: ignore[arg-type]


def files(names: list[str], content: dict[str, bytes]) -> Callable[[Path], object]:
    return lambda folder: make.images_folder(folder, names, content)


def arrays(query: bytes) -> Callable[[Path], object]:
    return lambda folder: (captions_folder(folder), make.arrays_folder(folder.parent / "arrays", query))


def model(weights: bytes | None, **config: object) -> Callable[[Path], object]:
    return lambda folder: (captions_folder(folder), make.model_folder(folder.parent / "model", weights, **config))


def processor(**changes: object) -> Callable[[Path], None]:
    """The demo's model with another image processor."""

    def write(folder: Path) -> None:
        make.images_folder(folder, [], {})
        copy = shutil.copytree(ROOT / "pipeline/demo/model", folder.parent / "model")
        about = json.loads((copy / "preprocessor_config.json").read_text())
        (copy / "preprocessor_config.json").write_text(json.dumps({**about, **changes}))

    return write


def sparse_sessions(folder: Path) -> None:
    captions_folder(folder)
    with open(folder / "sessions.jsonl", "r+b") as handle:
        handle.truncate(20 * 10**9)


def nested_config(folder: Path) -> None:
    captions_folder(folder)
    (make.model_folder(folder.parent / "model", b"") / "config.json").write_text("[" * 100_000)


def list_of_sessions(folder: Path) -> None:
    captions_folder(folder)
    path = folder / "sessions.jsonl"
    path.write_text(json.dumps([json.loads(line) for line in path.read_text().splitlines()]))


def two_cases(folder: Path) -> None:
    make.write(
        folder, [make.session(n, c, split) for n in range(9) for c in ("Dress", "dress") for split in ("train", "test")]
    )


SEPARATED = [{"reference": f"dress-test-0-{n}", "captions": ["in\u2028red\u0085and blue"]} for n in range(2)]
EXTRACT = "extract mine.toml"
IMPORT, PLAN = "cache import FOLDER/arrays mine.toml", "plan mine.toml --set extractor.model=FOLDER/model"
CASES = (
    Case("specs", "a BOM in front", captions_folder, "valid: spec mine", 0, encoding="utf-8-sig"),
    Case("specs", "UTF-16", captions_folder, "valid: spec mine", 0, encoding="utf-16"),
    Case("specs", "an unknown key", captions_folder, "did you mean 'training'?", spec=SPEC + "[trainig]\nepochs = 3\n"),
    Case("specs", "no seed", captions_folder, "key seeds: found []", spec="seeds = []\n" + SPEC),
    Case("specs", "a seed twice", captions_folder, "seed 0 is listed twice", spec="seeds = [0, 0]\n" + SPEC),
    Case(
        "specs",
        "a learning rate of inf",
        captions_folder,
        "key training.learning_rate: found inf",
        spec=SPEC + "[training]\nlearning_rate = inf\n",
    ),
    Case(
        "specs",
        "a batch of one",
        captions_folder,
        "key training.batch_size",
        spec=SPEC + "[training]\nbatch_size = 1\n",
    ),
    Case(
        "specs",
        "a name of 300 characters",
        captions_folder,
        "key name",
        spec=SPEC.replace('"mine"', f'"{"n" * 300}"', 1),
    ),
    Case("specs", "bytes that are no text", captions_folder, "mine.toml", spec="\x00\x01\x02", encoding="latin-1"),
    Case("JSONL", "a JSON list in sessions.jsonl", list_of_sessions, "one object per line is expected"),
    Case(
        "JSONL",
        "an integer of 5,000 digits",
        text("images.jsonl", '{"id": ' + "9" * 5000 + "}\n"),
        "images.jsonl: line 1",
    ),
    Case(
        "JSONL",
        "a lone surrogate in an id",
        text("images.jsonl", '{"id": "a\\ud800", "caption": "x"}\n'),
        "images.jsonl: line 1",
    ),
    Case(
        "JSONL",
        "100,000 nested lists",
        text("images.jsonl", "[" * 100_000 + "\n"),
        "a JSON list; one object per line is expected",
    ),
    Case(
        "JSONL", "an unknown key on 2,000 lines", text("images.jsonl", '{"id": "a", "size": 3}\n' * 2000), "more times"
    ),
    Case("JSONL", "a pointer file of Git LFS", text("sessions.jsonl", make.POINTER), "git lfs pull"),
    Case("JSONL", "a sparse file of 20 GB", sparse_sessions, "the file has 20,000,000,000 bytes, limit 2,147,483,648"),
    Case("JSONL", "a web page", text("sessions.jsonl", "<html>\n" * 500), "sessions.jsonl: is a web page"),
    Case("JSONL", "a gzip archive", text("sessions.jsonl", b"\x1f\x8b\x08\xff"), "is a gzip archive, not text"),
    Case("JSONL", "a file of NUL bytes", text("sessions.jsonl", b"\0" * 4096), "sessions.jsonl"),
    Case("sessions", "no train sessions", sessions(train=0), "dataset mine: no train sessions to fit model lstm on"),
    Case("sessions", "no train sessions, none needed", sessions(train=0), "no sessions", 0, UNTRAINED),
    Case(
        "sessions",
        "no train sessions, ewma without alpha",
        sessions(train=0),
        "no train sessions to fit model ewma on",
        spec=UNTRAINED.replace("alpha = 0.5", ""),
    ),
    Case(
        "sessions",
        "one train session",
        sessions(train=1),
        "1 of 1 train sessions left to fit model lstm on (in-batch negatives need at least 2)",
    ),
    Case(
        "sessions",
        "no session for validation",
        make.chained_folder,
        "key validation.fraction: fraction 0.1 of 6 sessions leaves no validation session",
        spec=SPEC + FRACTION,
    ),
    Case(
        "sessions",
        "Shoes without a matching edge",
        make.shoes_folder,
        "no session: no two of the 9 edges join within one image-name list",
        spec=SPEC.replace('"jsonl"', '"shoes"'),
    ),
    Case("names", "a category called overall", sessions(category="overall"), "category 'overall': this name is taken"),
    Case("names", "a zero byte in a category", sessions(category="a\0b"), "category 'a\\x00b': holds a zero byte"),
    Case(
        "names",
        "categories that differ only by case",
        two_cases,
        "categories differ only by case (1; first: 'Dress' and 'dress')",
        0,
    ),
    Case("images", "JPEG by a suffix in capitals", files(["B1.PNG"], {}), "valid: spec mine", 0, IMAGES),
    Case(
        "images",
        "backslashes in a path",
        files(["pictures\\a.png"], {}),
        "1 of 18 image files are missing (first: pictures\\a.png, line 1)",
        0,
        IMAGES,
    ),
    Case("images", "a path that leads out", files(["../../etc/passwd"], {}), "leaves the images folder", spec=IMAGES),
    Case(
        "images",
        "names that differ only by case",
        files(["B1.png", "b1.png"], {}),
        "image files differ only by case (1; first: 'B1.png' and 'b1.png')",
        0,
        IMAGES,
    ),
    Case(
        "images",
        "a PNG with a text of 2 MB",
        files(["a.png"], {"a.png": make.png(9, 2**21)}),
        "image  18 requested, 18 unique: 18 extracted, 0 reused",
        0,
        IMAGES,
        command=EXTRACT,
    ),
    Case(
        "images",
        "a PNG of 100,000 x 8",
        files(["a.png"], {"a.png": make.png(100_000)}),
        "image  18 requested, 18 unique: 18 extracted, 0 reused",
        0,
        IMAGES,
        command=EXTRACT,
    ),
    Case(
        "images",
        "a sparse file of 20 GB",
        make.huge_file,
        "the file has 20,000,000,000 bytes, limit 1,073,741,824: not an image?",
        0,
        IMAGES,
        command=EXTRACT,
    ),
    Case("texts", "line separators in a caption", sessions(turns=SEPARATED), "valid: spec mine", 0),
    Case(
        "texts",
        "terminal escapes in a key",
        text("images.jsonl", '{"id": "a", "\\u001b[2J": 1}\n'),
        "\\x1b[2J: unknown key",
    ),
    Case("arrays", "a file of no bytes", arrays(b""), "query.npy: is an empty file, not a NumPy array", command=IMPORT),
    Case("arrays", "a pointer file of Git LFS", arrays(make.POINTER), "git lfs pull", command=IMPORT),
    Case("arrays", "a ZIP archive", arrays(b"PK\x03\x04" + b"\0" * 60), "query.npy", command=IMPORT),
    Case("arrays", "a pickle", arrays(b"\x80\x04\x95\x01.."), "query.npy", command=IMPORT),
    Case("arrays", "the first byte of a pickle", arrays(b"\x80"), "query.npy", command=IMPORT),
    Case(
        "models",
        "a configuration of 100,000 nested lists",
        nested_config,
        "config.json cannot be read",
        1,
        command=PLAN,
    ),
    Case("models", "no weights", model(None), "has no model.safetensors", 1, command=PLAN),
    Case("models", "a pointer file of Git LFS", model(make.POINTER), "git lfs pull", 1, command=PLAN),
    Case(
        "models",
        "truncated weights",
        model(make.safetensors(b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', 5)),
        "is truncated",
        1,
        command=PLAN,
    ),
    Case(
        "models", "a header of 4 EB", model(make.safetensors(b"{}", 0, 1 << 62)), "model.safetensors", 1, command=PLAN
    ),
    Case(
        "models",
        "an image processor of 1,000,000 x 1,000,000",
        processor(size={"height": 10**6, "width": 10**6}),
        "its image processor sets size = {'height': 1000000, 'width': 1000000}, above the limit",
        1,
        IMAGES,
        command=PLAN,
    ),
    Case(
        "models",
        "an image processor of another model",
        processor(size={"height": 48, "width": 48}, crop_size={"height": 48, "width": 48}),
        "its image processor gives 48x48 pixels, the model reads 64x64",
        1,
        IMAGES,
        command=PLAN,
    ),
    Case(
        "models",
        "an image processor with a word for a number",
        processor(image_mean="half"),
        "its image processor fails on an image",
        1,
        IMAGES,
        command=PLAN,
    ),
    Case(
        "models",
        "layers beyond number",
        model(make.safetensors(b"{}"), num_hidden_layers=10**12),
        "config.json sets num_hidden_layers = 1,000,000,000,000, more than 1,000",
        1,
        command=PLAN,
    ),
    Case(
        "models",
        "sizes beyond memory",
        model(make.safetensors(b"{}"), hidden_size=10**9),
        "FOLDER/model",
        1,
        command=PLAN,
    ),
)


def run(case: Case, folder: Path) -> tuple[int, str]:
    """The exit code, and the output with the folder's path replaced by FOLDER."""
    case.make(folder / "data/mine")
    make.spec_file(folder, case.spec, case.encoding)
    with contextlib.suppress(FileNotFoundError):
        (folder / "data/arrays").rename(folder / "arrays")
    with contextlib.suppress(FileNotFoundError):
        (folder / "data/model").rename(folder / "model")
    words = case.command.replace("FOLDER", str(folder)).replace("mine.toml", str(folder / "mine.toml")).split()
    done = CliRunner().invoke(
        main,
        [*words, "--data", str(folder / "data"), "--out", str(folder / "out")][
            : len(words) + (2 if words[0] == "validate" else 4)
        ],
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output.replace(str(folder), "FOLDER")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.what}")
def test_a_bad_input_gets_its_line(tmp_path: Path, case: Case) -> None:
    code, output = run(case, tmp_path)
    assert code == case.exit, output
    assert any(case.line in line for line in output.splitlines()), output
    assert len(output.splitlines()) <= 40 and "Traceback" not in output


START, END = "<!-- table: python -m tests.hostile.test_table -->\n", "<!-- end of table -->\n"


def table() -> str:
    """The cases as a Markdown table."""
    rows = ["| kind | input | command | exit | line |", "|---|---|---|---|---|"]
    for case in CASES:
        cells = (case.kind, case.what, f"`{case.command}`", str(case.exit), f"`{case.line}`")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = page[page.index(START) + len(START) : page.index(END)]
    assert shown == table(), "write it with: python -m tests.hostile.test_table"


if __name__ == "__main__":
    text_now = PAGE.read_text(encoding="utf-8")
    first, last = text_now.index(START) + len(START), text_now.index(END)
    PAGE.write_text(text_now[:first] + table() + text_now[last:], encoding="utf-8")
