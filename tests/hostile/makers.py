"""Small makers of inputs as users have them, one for each kind."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

SPEC = """
name = "mine"
[dataset]
name = "jsonl"
folder = "mine"
[extractor]
name = "caption"
model = "none"
[models.avg]
[models.lstm]
"""


def session(number: int, category: str = "dress", split: str = "train", **changes: Any) -> dict[str, Any]:
    """Two turns over three images that no other session has."""
    ids = [f"{category}-{split}-{number}-{n}" for n in range(3)]
    turns = [{"reference": image, "captions": [f"in red {number}"]} for image in ids[:2]]
    about = {"id": f"{category}/{split}/{number}", "category": category, "split": split, "target": ids[2]}
    return {**about, "turns": turns, **changes}


def captions_folder(folder: Path, train: int = 10, test: int = 3, category: str = "dress", **changes: Any) -> Path:
    """A JSONL dataset of captions in ``folder``. ``changes`` to every session."""
    sessions = [session(n, category, "train", **changes) for n in range(train)]
    sessions += [session(n, category, "test", **changes) for n in range(test)]
    return write(folder, sessions)


def write(folder: Path, sessions: list[dict[str, Any]]) -> Path:
    """The two files of a JSONL dataset, with a caption for every image that a session names."""
    folder.mkdir(parents=True, exist_ok=True)
    named = dict.fromkeys(i for s in sessions for i in (*(t["reference"] for t in s["turns"]), s["target"]))
    lines(folder / "images.jsonl", [{"id": image, "caption": f"a garment {image}"} for image in named])
    lines(folder / "sessions.jsonl", sessions)
    return folder


def lines(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def spec_file(folder: Path, text: str = SPEC, encoding: str = "utf-8") -> None:
    """``mine.toml`` in ``folder``."""
    (folder / "mine.toml").write_bytes(text.encode(encoding))


def images_folder(folder: Path, names: Sequence[str], files: dict[str, bytes]) -> Path:
    """A JSONL dataset of image files: ``names`` of images.jsonl, for every image a PNG but those in ``files``."""
    write(folder, [session(n, split=split) for split in ("train", "test") for n in range(3)])
    ids = [json.loads(line)["id"] for line in (folder / "images.jsonl").read_text().splitlines()]
    named = dict(zip(ids, [*names, *(f"{i}.png" for i in ids[len(names) :])], strict=True))
    lines(folder / "images.jsonl", [{"id": i, "file": file} for i, file in named.items()])
    for n, file in enumerate(named.values()):
        if file not in files and "/" not in file and "\\" not in file:
            (folder / file).write_bytes(png(4 + n))
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return folder


def png(width: int, text: int = 0) -> bytes:
    """A picture of 8 rows. ``text``: bytes of a text chunk."""
    buffer, about = io.BytesIO(), PngInfo()
    if text:
        about.add_text("about", "x" * text)
    Pillow.new("RGB", (width, 8), (width * 7 % 256, 40, 90)).save(buffer, "PNG", pnginfo=about)
    return buffer.getvalue()


def huge_file(folder: Path) -> Path:
    """A dataset of images with a sparse file of 20 GB."""
    images_folder(folder, ["huge.png"], {"huge.png": b"\x89PNG"})
    with open(folder / "huge.png", "r+b") as handle:
        handle.truncate(20 * 10**9)
    return folder


def shoes_folder(folder: Path) -> Path:
    """Shoes files of two downloads: no edge joins two images of one list."""
    folder.mkdir(parents=True)
    edges = [
        {"ReferenceImageName": f"img/{n}.jpg", "ImageName": f"img/{n + 1}.jpg", "RelativeCaption": "red"}
        for n in range(9)
    ]
    (folder / "relative_captions_shoes.json").write_text(json.dumps(edges))
    for name in ("train", "eval"):
        (folder / f"{name}_im_names.txt").write_text("".join(f"{name}{n}.jpg\n" for n in range(9)))
    return folder


def chained_folder(folder: Path) -> Path:
    """Train sessions that all share one (reference, target) pair: no part can be cut off."""
    first = session(0)["turns"]
    return write(folder, [session(n, turns=first, target=f"t{n}") for n in range(6)] + [session(0, split="test")])


def arrays_folder(folder: Path, query: bytes) -> Path:
    """Arrays to import, whose query.npy has these bytes."""
    folder.mkdir(parents=True)
    for table in ("query", "target"):
        np.save(folder / f"{table}.npy", np.eye(2, dtype=np.float32))
        (folder / f"{table}.ids.txt").write_text("a\nb\n")
    (folder / "query.npy").write_bytes(query)
    return folder


def model_folder(folder: Path, weights: bytes | None = None, **config: Any) -> Path:
    """A model folder with only a configuration, and ``weights`` as model.safetensors."""
    folder.mkdir(parents=True)
    about = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    (folder / "config.json").write_text(json.dumps({**about, **config}))
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    return folder


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 90868376\n"


def safetensors(header: bytes, size: int = 0, declared: int | None = None) -> bytes:
    """A safetensors file with this header and ``size`` bytes of data; ``declared``: instead of the header's length."""
    return (len(header) if declared is None else declared).to_bytes(8, "little") + header + b"\0" * size


ODD = (None, True, -1, 1e400, 10**400, "", "x" * 5000, "\ud800", "../../x", [], {}, [[[]]], {"a": {"a": 1}})


def damage(data: bytes, rng: random.Random, is_json: bool) -> bytes:
    """Return ``data`` changed at random."""
    how = rng.choice(("flip", "flip", "flip", "cut", "insert", "blank", "empty", "value", "value"))
    if how == "value" and is_json:
        return _other_value(data, rng)
    changed = bytearray(data)
    if how == "empty" or not changed:
        return b""
    at = rng.randrange(len(changed))
    if how == "cut":
        del changed[at:]
    elif how == "insert":
        changed[at:at] = rng.randbytes(rng.randrange(1, 40))
    elif how == "blank":
        changed[at : at + 64] = bytes(len(changed[at : at + 64]))
    else:
        for _ in range(rng.choice((1, 1, 8))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _other_value(data: bytes, rng: random.Random) -> bytes:
    """Replace one value somewhere in a JSON text, or in one of its lines, by an odd one."""
    lines = data.split(b"\n") if data.count(b"\n}") == 0 else [data]
    at = rng.randrange(len(lines))
    try:
        whole = json.loads(lines[at])
    except ValueError:
        return data[: len(data) // 2]
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    if isinstance(whole, dict | list):
        walk(whole)
    if not places:
        return b"{}"
    holder, key = rng.choice(places)
    if rng.random() < 0.2 and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = rng.choice(ODD)
    lines[at] = json.dumps(whole).encode()
    return b"\n".join(lines)
