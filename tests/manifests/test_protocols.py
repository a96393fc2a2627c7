"""Clean splits: the rules on a few sessions, and the published lists on the real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from manifests.datasets import datasets
from manifests.leaks import overlaps
from manifests.protocols import PROTOCOLS, Protocol, apply_protocol, left_out, published, sessions_digest, split_list
from manifests.schema import Dataset, Image, Session, Split, Turn


def session(name: str, split: Split, path: str, category: str = "dress") -> Session:
    turns = tuple(Turn(reference=image, captions=("x",)) for image in path[:-1])
    return Session(id=name, category=category, split=split, turns=turns, target=path[-1])


SESSIONS = (
    session("shared pair", "train", "abc"),
    session("shared pair, other category", "train", "fgq", "shirt"),
    session("target as a reference", "train", "xyq"),
    session("clean train", "train", "uvw"),
    session("leaked", "test", "dbc"),
    session("leaked elsewhere", "test", "kfg"),
    session("clean test", "test", "mny"),
)
MADE = Dataset(
    name="made", images={i: Image(id=i) for i in "abcdfgkmnquvwxy"}, sessions=SESSIONS, galleries=(), notes=("first",)
)


@pytest.mark.parametrize(
    ("protocol", "gone"),
    [
        ("clean-test", {"leaked", "leaked elsewhere"}),
        ("clean-train", {"shared pair", "shared pair, other category"}),
        ("clean-target", {"shared pair", "shared pair, other category", "target as a reference"}),
    ],
)
def test_rules(protocol: Protocol, gone: set[str]) -> None:
    assert left_out(MADE, protocol) == gone
    kept = apply_protocol(MADE, protocol)
    assert {s.id for s in MADE.sessions} - {s.id for s in kept.sessions} == gone
    shared = {name for found in overlaps(kept, "dataset").values() for name in found}
    assert not shared & {"last pair", "any pair"}
    assert ("target image" in shared) == (protocol != "clean-target")
    assert kept.protocol == protocol
    assert kept.notes[0] == "first" and kept.notes[1].startswith(f"protocol {protocol}: ")
    assert "published" not in kept.notes[1]


def test_the_digest_is_of_the_content_not_of_the_order() -> None:
    assert sessions_digest(SESSIONS) == sessions_digest(reversed(SESSIONS))
    other = SESSIONS[0].model_copy(update={"target": "q"})
    assert sessions_digest((other, *SESSIONS[1:])) != sessions_digest(SESSIONS)


@pytest.mark.parametrize(
    ("name", "options", "kept"),
    [
        pytest.param("mt_fashioniq", {}, ((9105, 1090), (7285, 2400), (6267, 2400)), marks=pytest.mark.slow),
        pytest.param(
            "shoes", {"holdout": 0.1}, ((3189, 354), (3189, 354), (3123, 354)), marks=pytest.mark.slow
        ),  # one of its lists in every run: ``test_command``
    ],
)
def test_published_lists(
    shared_data: Path,
    request: pytest.FixtureRequest,
    name: str,
    options: dict[str, float],
    kept: tuple[tuple[int, int]],
) -> None:
    source = datasets.get(name)
    given = source.Options(**options)
    whole = request.getfixturevalue(name) if name == "mt_fashioniq" else source.load(given, shared_data)
    for protocol, counts in zip(PROTOCOLS, kept, strict=True):
        made = split_list(whole, protocol)
        assert published(name, protocol) == json.loads(json.dumps(made.as_dict()))
        assert made.kept == counts
    loaded = source.load(source.Options(**options, protocol="clean-target"), shared_data)
    assert sessions_digest(loaded.sessions) == published(name, "clean-target")["digest"]
    assert loaded.notes[-1].endswith("the published list)")
    assert not any({"any pair", "target image"} & has for has in overlaps(loaded, "dataset").values())


@pytest.mark.slow
def test_another_copy_is_not_called_published(shared_data: Path) -> None:
    source = datasets.get("shoes")
    loaded = source.load(source.Options(holdout=0.2, protocol="clean-train"), shared_data)
    assert loaded.notes[-1].endswith(", not the published list)")


@pytest.mark.slow
def test_command(shared_data: Path, tmp_path: Path) -> None:
    words = ["splits", "shoes-caption", "--data", str(shared_data), "--to", str(tmp_path)]
    done = CliRunner().invoke(main, [*words, "--set", "dataset.protocol=clean-test"])
    assert done.exit_code == 0, done.output
    line = next(line for line in done.stdout.splitlines() if line.startswith("clean-target"))
    assert line.split()[1:5] == ["3,123", "354", "0", "0"] and line.endswith("published")
    assert json.loads((tmp_path / "shoes-clean-target.json").read_text()) == published("shoes", "clean-target")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_leaks_proves_a_split_clean(shared_data: Path, tmp_path: Path, protocol: Protocol) -> None:
    words = ["leaks", "shoes-caption", "--data", str(shared_data), "--out", str(tmp_path), "--scope", "dataset"]
    done = CliRunner().invoke(main, [*words, "--set", f"dataset.protocol={protocol}"])
    assert done.exit_code == 0, done.output
    shared = "any pair or target image" if protocol == "clean-target" else "any pair"
    assert f"shoes, clean split {protocol}: " in done.stdout
    assert f"clean: no test session shares {shared}\n" in done.stdout
