"""No command shows a number of other data: each change is made as a user makes it, on a folder that was run before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image as Picture

from cli import main
from manifests.datasets.jsonl import export
from manifests.schema import Image
from tests.pipeline.extraction.conftest import save_bert, save_clip
from tests.worlds import world

SPEC = """
name = "{name}"
[dataset]
name = "jsonl"
folder = "{folder}"
{more}
[extractor]
name = "{extractor}"
model = "{model}"
[training]
epochs = 2
batch_size = 30
[models.last]
[models.lstm]
hidden = 4
"""


def paint(folder: Path, names: list[str], seed: int) -> None:
    """A real JPEG for every image; another seed paints others."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in names:
        pixels = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Picture.fromarray(pixels).save(folder / f"{name.replace('/', '_')}.jpg", quality=95)


class Home:
    """A user's folder with data/, models, specs and out/."""

    def __init__(self, folder: Path):
        self.folder = folder
        data = world(("dress",))
        self.names = list(data.images)
        files = {
            i: Image(id=i, file=f"pictures/{i.replace('/', '_')}.jpg", caption=data.images[i].caption)
            for i in data.images
        }
        self.data = data.model_copy(update={"images": files, "images_root": None})

    def make(self, name: str, seed: int = 0) -> None:
        export(self.data, self.folder / "data" / name)
        paint(self.folder / "data" / name / "pictures", self.names, seed)

    def spec(self, name: str, folder: str, extractor: str = "clip", more: str = "") -> str:
        path = self.folder / f"{name}.toml"
        model = self.folder / ("clip" if extractor == "clip" else "bert")
        path.write_text(SPEC.format(name=name, folder=folder, extractor=extractor, model=model, more=more), "utf-8")
        return str(path)

    def call(self, *words: str, out: str = "out") -> Result:
        return CliRunner().invoke(main, [*words, "--data", str(self.folder / "data"), "--out", str(self.folder / out)])

    def run(self, spec: str, out: str = "out") -> dict[str, float]:
        done = self.call("run", spec, out=out)
        assert done.exit_code == 0, done.output
        return self.numbers(spec, out)

    def numbers(self, spec: str, out: str = "out") -> dict[str, float]:
        """The mean metric by model of the evaluations that `evaluate --json` finds current."""
        found = self.call("evaluate", spec, "--json", out=out)
        assert found.exit_code == 0, found.output
        return {s["model"]: s["metrics"]["all"]["overall"]["MRR"] for s in json.loads(found.stdout)}

    def ids(self, spec: str) -> list[str]:
        """Run ids of the two models."""
        return [s["run"] for s in json.loads(self.call("evaluate", spec, "--json").stdout)]

    def ids_on_disk(self, model: str) -> list[str]:
        return sorted(path.name for path in (self.folder / "out" / "runs").glob(f"*/{model}/*"))

    def fresh(self, spec: str) -> dict[str, float]:
        shutil.rmtree(self.folder / "fresh", ignore_errors=True)
        return self.run(spec, "fresh")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "home"
    home = Home(folder)
    home.make("a")
    save_clip(folder / "clip")
    save_bert(folder / "bert")
    home.run(home.spec("s", "a"))
    home.run(home.spec("words", "a", "caption"))
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Iterator[Home]:
    """A copy in its place, so that every path stays the same; the original is put back afterwards."""
    kept = tmp_path / "kept"
    shutil.copytree(made, kept)
    yield Home(made)
    shutil.rmtree(made)
    shutil.copytree(kept, made)


def assert_stale(home: Home, spec: str, *words: str) -> None:
    """`status` says stale or missing with its reason and exit code 3, and no other command shows a number."""
    status = home.call("status", spec)
    assert status.exit_code == 3, status.output
    for word in words:
        assert word in status.output, status.output
    evaluated = json.loads(home.call("status", spec, "--json").stdout)["runs"]
    assert "evaluated" not in {state for seeds in evaluated.values() for state in seeds.values()}


def test_other_pictures_under_the_same_names(home: Home) -> None:
    spec = home.spec("s", "a")
    before, ids = home.numbers(spec), home.ids(spec)
    assert home.call("compare", *ids).exit_code == 0
    paint(home.folder / "data" / "a" / "pictures", home.names, seed=5)
    assert_stale(home, spec, "have another content", "run `fashion-ntm extract")
    assert home.call("evaluate", spec).exit_code == 3
    assert home.call("compare", *ids).exit_code == 3
    explained = home.call("cache", "explain", spec)
    assert explained.exit_code in (0, 3) and "changed" in explained.output
    after = home.run(spec)
    assert after == home.fresh(spec) and after != before
    listed = [r["about"] for r in json.loads(home.call("ls", "runs", "--json").stdout)["runs"]]
    assert sum("of other data" in about for about in listed) == 2 and sum("current" in about for about in listed) == 4


@pytest.mark.slow
def test_a_second_folder_of_pictures(home: Home) -> None:
    paint(home.folder / "data" / "a" / "second" / "pictures", home.names, seed=6)
    moved = home.spec("s", "a", more='images = "a/second"')
    assert home.call("evaluate", moved).exit_code == 3
    assert home.run(moved) == home.fresh(moved)
    back = home.spec("s", "a")
    assert home.numbers(back) == home.fresh(back)  # the first folder's record is still there


def test_corrected_captions(home: Home) -> None:
    spec = home.spec("words", "a", "caption")
    path = home.folder / "data" / "a" / "images.jsonl"
    path.write_text(path.read_text("utf-8").replace("a red dress", "a black collar"), "utf-8")
    assert_stale(home, spec, "captions", "run `fashion-ntm extract")
    assert home.run(spec) == home.fresh(spec)


@pytest.mark.slow
def test_two_catalogues_of_one_name(home: Home) -> None:
    """Specs of one dataset name whose folders hold other pictures under the same ids."""
    shutil.copytree(home.folder / "data" / "a", home.folder / "data" / "deep" / "a")
    paint(home.folder / "data" / "deep" / "a" / "pictures", home.names, seed=7)
    one, two = home.spec("s", "a"), home.spec("t", "deep/a")
    first = home.numbers(one)
    assert home.call("evaluate", two).exit_code == 3  # never trained: nothing of the first is shown
    second = home.run(two)
    assert home.numbers(one) == first == home.fresh(one)
    assert second == home.fresh(two)


@pytest.mark.parametrize(
    "change",
    [
        "targets rotated",
        pytest.param("test split cut", marks=pytest.mark.slow),
        pytest.param("new galleries", marks=pytest.mark.slow),
    ],
)
def test_the_test_side(home: Home, change: str) -> None:
    spec, folder = home.spec("s", "a"), home.folder / "data" / "a"
    before, ids = home.numbers(spec), home.ids(spec)
    assert home.call("compare", *ids).exit_code == 0
    sessions = [json.loads(line) for line in (folder / "sessions.jsonl").read_text("utf-8").splitlines()]
    test = [s for s in sessions if s["split"] == "test"]
    if change == "test split cut":
        sessions = [s for s in sessions if s["split"] == "train"] + test[:3]
    elif change == "targets rotated":
        targets = [s["target"] for s in test]
        for session, target in zip(test, targets[1:] + targets[:1], strict=True):
            session["target"] = target
    else:
        path = folder / "galleries.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        kept = {s["target"] for s in test}
        for row in rows:
            row["images"] = [i for i in row["images"] if i in kept] if row["split"] == "test" else row["images"]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "sessions.jsonl").write_text("".join(json.dumps(s) + "\n" for s in sessions), "utf-8")
    assert_stale(home, spec, "its evaluation is not current", "run `fashion-ntm evaluate")
    assert home.call("compare", *ids).exit_code == 3
    after = home.numbers(spec)  # `evaluate` ranks again; no run is trained again
    assert after == home.fresh(spec) and after != before


def test_a_new_model_under_the_old_path(home: Home) -> None:
    spec = home.spec("s", "a")
    shutil.rmtree(home.folder / "clip")
    save_clip(home.folder / "clip", seed=9)
    assert_stale(home, spec, "model files changed", "extractor.model:model.safetensors")
    assert home.run(spec) == home.fresh(spec)


@pytest.mark.parametrize("change", ["removed", "added"])
def test_a_file_less_or_more_in_the_model_folder(home: Home, change: str) -> None:
    spec = home.spec("s", "a")
    if change == "removed":
        (home.folder / "clip" / "tokenizer_config.json").unlink()
    else:
        (home.folder / "clip" / "adapter_config.json").write_text("{}", "utf-8")
    assert_stale(home, spec, "model files changed", "_config.json")


def test_every_trained_seed_is_shown(home: Home) -> None:
    spec = home.spec("s", "a")
    assert home.call("train", spec, "--model", "lstm", "--seeds", "0..2").exit_code == 0
    shown = json.loads(home.call("status", spec, "--json").stdout)["runs"]["lstm"]
    assert set(shown) == {"0", "1", "2"}
    found = json.loads(home.call("evaluate", spec, "--model", "lstm", "--json").stdout)
    assert [s["seed"] for s in found] == [0, 1, 2]


def test_status_table_and_figure_read_no_feature(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from cache import Store

    def refuse(self: Store, *_: object, **__: object) -> None:
        raise AssertionError("a feature was read")

    for name in ("gather", "load"):
        monkeypatch.setattr(Store, name, refuse)
    spec = home.spec("s", "a")
    done = home.call("status", spec)
    assert done.exit_code == 0, done.output
    for words in (("table", "2", "--spec", spec), ("figure", "8", "--format", "csv", "--spec", spec)):
        assert home.call(*words).exit_code == 0
    shown = home.call("table", "2", "--spec", spec, "--format", "csv").stdout
    assert shown and any(
        i in home.call("table", "2", "--spec", spec, "--format", "json").stdout for i in home.ids_on_disk("lstm")
    )


def test_a_workspace_of_an_earlier_version_is_listed_and_never_mixed_in(home: Home) -> None:
    """Runs without an identity version, and a record without a binding, as versions before had them."""
    spec, out = home.spec("s", "a"), home.folder / "out"
    for file in (out / "extracted").glob("s-*.json"):
        about = json.loads(file.read_text("utf-8"))
        for key in ("spec", "binding", "declared", "sources"):
            del about[key]
        file.unlink()
        (out / "extracted" / "s.json").write_text(json.dumps(about), "utf-8")
    for file in (out / "runs").glob("*/*/*/run.json"):
        record = json.loads(file.read_text("utf-8"))
        if record["spec"]["name"] == "s":
            del record["identity"]["version"]
            file.write_text(json.dumps(record), "utf-8")
            (file.parent / "seal.json").unlink()
    assert_stale(home, spec, "an earlier version did it", "run `fashion-ntm extract")
    listed = [r["about"] for r in json.loads(home.call("ls", "runs", "--json").stdout)["runs"]]
    assert sum("of an earlier version" in about for about in listed) == 2
    assert home.run(spec) == home.fresh(spec)


def test_a_run_copied_over_another_is_refused(home: Home) -> None:
    spec = home.spec("s", "a")
    last, lstm = home.ids(spec)
    runs = home.folder / "out" / "runs"
    (one,), (other,) = runs.glob(f"*/last/{last}"), runs.glob(f"*/lstm/{lstm}")
    shutil.rmtree(other)
    shutil.copytree(one, other)
    status = home.call("status", spec)
    assert status.exit_code == 3 and "damaged" in status.output
    before = home.fresh(spec)
    assert home.run(spec) == before


def test_a_changed_digit_in_a_summary_is_not_shown(home: Home) -> None:
    spec = home.spec("s", "a")
    (file,) = (home.folder / "out" / "runs").glob(f"*/lstm/{home.ids(spec)[1]}/summary.json")
    text = file.read_text("utf-8")
    at = text.index('"MRR": ') + len('"MRR": ')
    file.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :], "utf-8")
    status = home.call("status", spec)
    assert status.exit_code == 3 and "damaged" in status.output and "run `fashion-ntm evaluate" in status.output
    assert home.numbers(spec) == home.fresh(spec)
