"""The `cache` commands as a user types them, on a small JSONL dataset and a tiny sentence encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cache import Store, list_stores
from cli import main
from manifests.datasets.jsonl import export
from manifests.schema import Dataset
from pipeline.commands.cache import cache as group
from tests.caption_project import call, caption_project
from tests.test_cli import SPEC
from tests.worlds import world

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/world, a model, small.toml and out/, extracted and composed."""
    folder = caption_project(tmp_path_factory.mktemp("project"), "small", SPEC)
    for step in ("extract", "fit-composer"):
        result = call(folder, step, str(folder / "small.toml"))
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy of the stores and the data that a test may damage; model and spec are shared."""
    shutil.copytree(made / "out", tmp_path / "out")
    shutil.copytree(made / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture
def cache(made: Path, project: Path) -> Run:
    """``cache("gc", "SPEC", "--dry-run")`` on this test's folders; the word SPEC is small.toml."""

    def run(command: str, *words: str, data: bool = True, group: tuple[str, ...] = ("cache",)) -> Result:
        words = tuple(str(made / "small.toml") if w == "SPEC" else w for w in words)
        where = ["--data", str(project / "data")] if data else []
        return CliRunner().invoke(main, [*group, command, *words, *where, "--out", str(project / "out")])

    return run


def store_of(project: Path, kind: str) -> Store:
    """The extractor's own store ("caption") or the composed one ("caption+gated")."""
    (found,) = [s.path for s in list_stores(project / "out" / "stores") if s.extractor == kind]
    return Store.open(found)


def name_of(store: Store) -> str:
    return f"{store.path.parent.name}/{store.path.name}"


@pytest.mark.parametrize("command", sorted(group.commands))
def test_help_has_an_example(command: str) -> None:
    result = CliRunner().invoke(main, ["cache", command, "--help"])
    assert result.exit_code == 0 and "Example: fashion-ntm cache" in result.output


def test_a_name_that_is_nothing_gets_the_nearest(cache: Run, project: Path) -> None:
    right = name_of(store_of(project, "caption"))
    wrong = cache("verify", right[:-1] + "z")
    assert wrong.exit_code == 3 and right in wrong.output and "demo" in wrong.output
    assert cache("verify", "deom").exit_code == 3 and "did you mean 'demo'" in cache("verify", "deom").output


# ---- explain


def test_explain_says_the_spec_s_own_store_is_not_stale(cache: Run, project: Path) -> None:
    for kind in ("caption", "caption+gated"):
        result = cache("explain", name_of(store_of(project, kind)), "SPEC", "--json")
        about = json.loads(result.stdout)
        assert (result.exit_code, about["stale"], about["semantic"]) == (0, False, [])
        assert all((row["new"], row["changed"], row["removed"]) == (0, 0, 0) for row in about["rows"])
    assert cache("explain", "SPEC").exit_code == 0  # without a store: the one that was extracted last


def test_explain_names_every_field_that_differs_and_keeps_execution_apart(cache: Run, project: Path) -> None:
    store = name_of(store_of(project, "caption"))
    result = cache("explain", store, "SPEC", "--set", "extractor.normalise=false", "--json")
    about = json.loads(result.stdout)
    assert result.exit_code == 3 and about["stale"]
    assert about["semantic"] == [{"field": "normalise", "old": True, "new": False}]
    text = cache("explain", store, "SPEC", "--set", "extractor.dtype=bfloat16").stdout
    assert 'compute_dtype: "float32" -> "bfloat16"' in text and "STALE: 1 field" in text
    composed = cache("explain", name_of(store_of(project, "caption+gated")), "SPEC", "--set", "composer.hidden=9")
    assert composed.exit_code == 3 and "composer.options.hidden: 8 -> 9" in composed.stdout
    assert 'composer.weights: "' in composed.stdout and "not fitted yet" in composed.stdout


def test_explain_counts_rows_against_the_dataset(cache: Run, project: Path) -> None:
    data = change_world(project)
    about = json.loads(cache("explain", name_of(store_of(project, "caption")), "SPEC", "--json").stdout)
    rows = {row["table"]: row for row in about["rows"]}
    assert not about["stale"] and (rows["image"]["new"], rows["image"]["changed"], rows["image"]["removed"]) == (
        1,
        1,
        2,
    )
    assert "dress/0-0" in rows["image"]["examples"] and rows["text"]["new"] == 0 and len(data.images) == 60


def change_world(project: Path) -> Dataset:
    """One image with another caption, one image less, one more; the other 58 as they were."""
    data = world()
    images = dict(data.images)
    images["dress/0-0"] = images["dress/0-0"].model_copy(update={"caption": "a plain blue collar"})
    gone = "shirt/0-0"
    sessions = tuple(s for s in data.sessions if gone not in (*(t.reference for t in s.turns), s.target))
    del images[gone]
    images["new"] = images["dress/0-1"].model_copy(update={"id": "new", "caption": "a green top with red"})
    galleries = tuple(g.model_copy(update={"images": tuple(i for i in g.images if i != gone)}) for g in data.galleries)
    data = data.model_copy(update={"images": images, "galleries": galleries, "sessions": sessions})
    shutil.rmtree(project / "data" / "world")
    export(data, project / "data" / "world")
    return data


# ---- verify


def test_verify_passes_a_whole_store_by_name_path_and_spec(cache: Run, project: Path) -> None:
    store = store_of(project, "caption")
    for target in (name_of(store), str(store.path), store.path.name, store.fingerprint[:12], "SPEC"):
        result = cache("verify", target)
        assert result.exit_code == 0 and "every row is whole" in result.stdout, result.output


@pytest.mark.parametrize("file", ["image-00000.h5", "manifest.json"])
def test_verify_names_a_flipped_bit(cache: Run, project: Path, file: str) -> None:
    path = store_of(project, "caption").path
    data = bytearray((path / file).read_bytes())
    data[len(data) // 2] ^= 1
    (path / file).write_bytes(bytes(data))
    result = cache("verify", str(path), "--json")
    ((report,),) = [json.loads(result.stdout)]
    (finding,) = [f for f in report["findings"] if f["level"] == "error"]
    assert result.exit_code == 1 and report["damaged"] and finding["place"] == file and "repair" in result.stdout


def test_reextract_agrees_with_both_stores(cache: Run) -> None:
    result = cache("verify", "SPEC", "--reextract", "8", "--seed", "3", "--json")
    assert result.exit_code == 0, result.output
    tables = {t["table"]: t for report in json.loads(result.stdout) for t in report["reextract"]["tables"]}
    assert set(tables) == {"image", "text", "target", "query"}
    for table in tables.values():
        assert table["sampled"] == min(8, table["rows"]) and table["worst"] == []
        assert 0 <= table["max_abs"] <= table["tolerance"] and table["cosine"] > 0.999 and table["top10"] == 1.0


def test_reextract_finds_rows_of_another_model(cache: Run, project: Path) -> None:
    """Rows that are whole by every digest, and not what the model gives: only computing them again can tell."""
    store = store_of(project, "caption")
    keys, rows = store.keys("image"), store.load("image")
    rows[[0, 1]] = rows[[1, 0]]
    rewritten(store, "image", keys, rows)
    result = cache("verify", "SPEC", "--reextract", "1000", "--json")
    assert result.exit_code == 1
    tables = {t["table"]: t for r in json.loads(result.stdout) for t in r.get("reextract", {"tables": []})["tables"]}
    assert {row["key"] for row in tables["image"]["worst"]} == {keys[0].tobytes().hex(), keys[1].tobytes().hex()}
    assert tables["text"]["worst"] == [] and cache("verify", str(store.path)).exit_code == 0
    refused = cache("verify", name_of(store), "--reextract", "3")
    assert refused.exit_code == 2 and "needs a SPEC" in refused.output


def rewritten(store: Store, table: str, keys: np.ndarray, rows: np.ndarray) -> None:
    """The store with other rows in ``table``, digests and all right."""
    from cache.rewrite import Rewriter

    with Rewriter.of(store.path, "test") as writer:
        writer.keep({table: np.zeros(len(keys), dtype=bool)})
        writer.commit(table, keys, rows)


# ---- gc, repair, diff


def test_changed_and_new_rows_alone_are_extracted_and_the_old_ones_collected(cache: Run, project: Path) -> None:
    texts = [{text for _, text in d.queries()} for d in (world(), change_world(project))]
    report = json.loads(cache("extract", "SPEC", "--json", group=()).stdout)["extraction"]
    assert report["tables"]["image"]["extracted"] == 2 and report["tables"]["text"]["extracted"] == 0
    store = store_of(project, "caption")
    before = store.tables["image"].rows
    files = {f: f.read_bytes() for f in store.path.iterdir() if f.is_file()}
    planned = json.loads(cache("gc", "SPEC", "--dry-run", "--json").stdout)
    assert planned[0]["dropped"] == {"image": 2, "text": len(texts[0] - texts[1])}
    assert {f: f.read_bytes() for f in store.path.iterdir() if f.is_file()} == files
    done = cache("gc", "SPEC")
    assert done.exit_code == 0, done.output
    after = store_of(project, "caption")
    assert after.tables["image"].rows == before - 2 and "2 rows dropped" in done.stdout
    assert cache("verify", "SPEC").exit_code == 0
    again = json.loads(cache("extract", "SPEC", "--json", group=()).stdout)["extraction"]
    assert again["extracted"] == 0
    assert json.loads(cache("gc", "SPEC", "--json").stdout)[0]["rows_dropped"] == 0


def test_gc_keeps_what_another_spec_needs_and_refuses_to_forget_one(cache: Run, made: Path, project: Path) -> None:
    store = store_of(project, "caption")
    small = world(("dress",))
    export(small.model_copy(update={"name": "world"}), project / "data" / "dresses")
    other = project / "dresses.toml"
    text = SPEC.format(model=made / "model").replace('name = "small"', 'name = "dresses"')
    other.write_text(text.replace('folder = "world"', 'folder = "dresses"\nlabel = "world"'), encoding="utf-8")
    shared = cache("gc", str(other), "--dry-run")
    assert shared.exit_code == 1 and "'small'" in shared.output
    assert f"--keep-for {made / 'small.toml'}" in shared.output
    kept = json.loads(cache("gc", str(other), "--keep-for", "SPEC", "--json").stdout)
    assert kept[0]["rows_dropped"] == 0 and store_of(project, "caption").tables == store.tables
    alone = json.loads(cache("gc", str(other), "--alone", "--dry-run", "--json").stdout)
    assert alone[0]["dropped"]["image"] == 30
    by_store = json.loads(cache("gc", name_of(store), "--keep-for", "SPEC", "--keep-for", str(other), "--json").stdout)
    assert by_store[0]["rows_dropped"] == 0
    assert json.loads(cache("gc", name_of(store), "--json").stdout)[0]["rows_dropped"] == 0  # debris alone
    stale = cache("gc", name_of(store), "--keep-for", str(made / "small.toml"), "--set", "extractor.normalise=false")
    assert stale.exit_code == 0  # --set is not for --keep-for


def test_repair_by_spec_recomputes_only_what_is_broken(cache: Run, project: Path) -> None:
    for kind, shard in (("caption", "image-00000.h5"), ("caption+gated", "query-00000.h5")):
        store = store_of(project, kind)
        before = {t: dict(zip(map(bytes, store.keys(t)), store.load(t), strict=True)) for t in store.tables}
        data = bytearray((store.path / shard).read_bytes())
        data[-9] ^= 1
        (store.path / shard).write_bytes(bytes(data))
        result = cache("repair", "SPEC", "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        table = shard.partition("-")[0]
        assert report["whole"] and {t: n for s in report["stores"] for t, n in s["rows_lost"].items()} == {
            table: len(before[table])
        }
        tables = report["filled"]["extraction"]["tables"]
        assert tables["text"]["extracted"] == 0 and tables["image"]["extracted"] == (60 if table == "image" else 0)
        after = store_of(project, kind)
        for name, rows in before.items():
            found = dict(zip(map(bytes, after.keys(name)), after.load(name), strict=True))
            assert found.keys() == rows.keys() and all(np.abs(found[k] - rows[k]).max() <= 1e-3 for k in rows)
    assert cache("verify", "SPEC").exit_code == 0


def test_repair_by_spec_of_a_lost_manifest_and_a_damaged_composed_store_at_once(cache: Run, project: Path) -> None:
    composed = store_of(project, "caption+gated").path
    (store_of(project, "caption").path / "manifest.json").unlink()
    (composed / "target-00000.h5").unlink()
    report = json.loads(cache("repair", "SPEC", "--json").stdout)
    assert report["whole"] and [sum(s["rows_lost"].values()) for s in report["stores"]] == [0, 60]
    assert report["filled"]["extraction"]["extracted"] == 0 and report["filled"]["composed"]["written"] == {
        "target": 60,
        "query": 0,
    }
    assert cache("verify", "SPEC").exit_code == 0


def test_repair_of_a_store_alone_says_what_fills_it(cache: Run, project: Path) -> None:
    store = store_of(project, "caption")
    (store.path / "text-00000.h5").unlink()
    result = cache("repair", name_of(store), data=True)
    assert result.exit_code == 3 and "fashion-ntm extract " in result.output and "small.toml" in result.output
    assert cache("repair", name_of(store)).exit_code == 0
    (store.path / "manifest.json").write_text("{}")
    lost = cache("repair", name_of(store))
    assert lost.exit_code == 1 and "cache repair SPEC" in lost.output
    assert cache("repair", "SPEC").exit_code == 0 and cache("verify", "SPEC").exit_code == 0


def test_diff(cache: Run, project: Path) -> None:
    a = store_of(project, "caption")
    same = cache("diff", name_of(a), str(a.path), data=False)
    assert same.exit_code == 0 and "are the same" in same.stdout
    assert cache("extract", "SPEC", "--set", "extractor.dtype=bfloat16", group=()).exit_code == 0
    (b,) = [s.path for s in list_stores(project / "out" / "stores") if s.extractor == "caption" and s.path != a.path]
    result = cache("diff", name_of(a), b.name, "--json", data=False)
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["fields"] == [
        {"field": "compute_dtype", "old": "float32", "new": "bfloat16"}
    ]
    image = next(t for t in found["tables"] if t["table"] == "image")
    assert image["only_a"] == image["only_b"] == 0 and 0 < image["largest"][0]["max_abs"] < 0.1


# ---- export and import


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_what_is_exported_and_imported_again_trains(cache: Run, project: Path, form: str) -> None:
    arrays = project / "arrays"
    out = cache("export", "SPEC", "--to", str(arrays), "--format", form)
    assert out.exit_code == 0, out.output
    result = cache("import", str(arrays), "SPEC", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["fit"]["missing"] == report["fit"]["unknown"] == {"query": [], "target": []}
    imported = Store.open(report["extraction"]["store"])
    original = store_of(project, "caption+gated")
    for image, key in original.catalogue().items():
        mine = imported.gather(
            "target", imported.find("target", np.frombuffer(imported.catalogue()[image], np.uint8)[None])
        )
        theirs = original.gather("target", original.find("target", np.frombuffer(key, np.uint8)[None]))
        assert mine.tobytes() == theirs.tobytes() and mine.dtype == theirs.dtype
    words = ["--set", "extractor.name=imported", "--set", f"extractor.folder={json.dumps(str(arrays))}"]
    assert " ".join(words[:2]) in report["next"]
    for step in ("train", "evaluate"):
        done = cache(step, "SPEC", *words, "--model", "avg", "--model", "lstm", group=())
        assert done.exit_code == 0, done.output
    again = json.loads(cache("import", str(arrays), "SPEC", "--json").stdout)
    assert again["extraction"]["extracted"] == 0


def test_an_import_takes_the_overrides_that_apply_and_refuses_the_rest(cache: Run, project: Path) -> None:
    arrays = str(project / "arrays")
    assert cache("export", "SPEC", "--to", arrays).exit_code == 0
    declared = ("--set", 'extractor.contaminated_on=["mt_fashioniq"]', "--set", "extractor.store_dtype=float32")
    done = cache("import", arrays, "SPEC", *declared, "--set", "training.epochs=1", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    store = Store.open(report["extraction"]["store"])
    assert store.tables["query"].dtype == "float32" and "training.epochs=1" in report["next"]
    notes = [json.loads(file.read_text()) for file in project.glob("out/**/*.json")]
    assert ["mt_fashioniq"] in [n.get("contaminated_on") for n in notes if isinstance(n, dict)]
    for wrong, hint in (
        ("extractor.nonsense=1", "known: concatenated"),
        ("extractor.normalize=true", "did you mean 'normalise'"),
        ("extractor.dtype=bfloat16", "key extractor.dtype"),
        ("nonsense=1", "key nonsense: unknown key"),
    ):
        refused = cache("import", arrays, "SPEC", "--set", wrong)
        assert refused.exit_code == 4 and hint in refused.output, refused.output
    for own, more in (("name=caption", ()), ('folder="x"', ()), ("normalise=false", ("--normalise",))):
        refused = cache("import", arrays, "SPEC", "--set", f"extractor.{own}", *more)
        assert refused.exit_code == 2 and "of this command set extractor." in refused.output, refused.output


def test_an_import_that_does_not_fit_names_everything_at_once(cache: Run, project: Path) -> None:
    folder = project / "mine"
    folder.mkdir()
    np.save(folder / "query.npy", np.ones((2, 4), np.float64))
    np.save(folder / "target.npy", np.ones((2, 4), np.float32))
    (folder / "query.ids.txt").write_text("dress0\t1\ndress0\t2\n")
    (folder / "target.ids.txt").write_text("dress/0-0\ndress/0-0\n")
    result = cache("import", str(folder), "SPEC")
    assert result.exit_code == 4 and "float64" in result.output and "also on line 1" in result.output
    np.save(folder / "query.npy", np.ones((2, 4), np.float32))
    (folder / "target.ids.txt").write_text("dress/0-0\nno such image\n")
    result = cache("import", str(folder), "SPEC")
    assert result.exit_code == 4 and "'no such image'" in result.output and "59 rows missing" in result.output
