"""A user's own arrays: what is read, what is refused and how it is named, and that stage 2 runs on them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from cache import Store
from manifests.errors import ManifestError
from manifests.schema import Component, Dataset, RunSpec
from pipeline.analysis.protocol import protocol_notes, read_runs
from pipeline.core.workspace import Workspace
from pipeline.extraction.arrays import fit, open_arrays
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import asked_runs
from pipeline.jobs.stage1 import fit_composer_spec
from pipeline.jobs.stage2 import evaluate, train
from pipeline.stores.imports import import_features
from pipeline.training.errors import FeatureError
from tests.worlds import features, world

D = 6


def vector(*names: object) -> np.ndarray:
    """A row that follows from its name, so that any row can be checked by itself."""
    seed = int.from_bytes(repr(names).encode(), "little") % 2**32
    return np.random.default_rng(seed).standard_normal(D).astype(np.float16)


def lines(path: Path, *text: str) -> None:
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")


def write(folder: Path, data: Dataset, cat: bool = True, form: str = "npy", leave_out: tuple[str, ...] = ()) -> Path:
    """query by session and turn, target by image id, as ids.txt."""
    folder.mkdir(parents=True)
    images = [i for i in data.images if i not in leave_out]
    asked = [(s, t.reference, t.text, n) for s in data.sessions for n, t in enumerate(s.turns, start=1)]
    asked += [(s, s.turns[0].reference, s.text, 0) for s in data.sessions if cat]
    tables = {
        "target": (np.stack([vector(i) for i in images]), images),
        "query": (np.stack([vector(r, t) for _, r, t, _ in asked]), [f"{s.id}\t{n}" for s, _, _, n in asked]),
    }
    for table, (rows, names) in tables.items():
        if form == "npy":
            np.save(folder / f"{table}.npy", rows)
        else:
            save_file({"features": rows}, folder / f"{table}.safetensors")
        lines(folder / f"{table}.ids.txt", *names)
    return folder


def spec_of(folder: Path, **options: Any) -> RunSpec:
    models: dict[str, dict[str, Any]] = {"avg": {}, "cat": {}, "lstm": {"hidden": 4}}
    about = Component(name="imported", folder=str(folder), **options)
    training = {"epochs": 2, "batch_size": 16}
    return RunSpec(name="mine", dataset=Component(name="jsonl"), extractor=about, models=models, training=training)


@pytest.fixture
def data() -> Dataset:
    return world()


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_stage_two_runs_on_imported_features(tmp_path: Path, data: Dataset, form: str) -> None:
    spec, workspace = spec_of(write(tmp_path / "mine", data, form=form)), Workspace(tmp_path / "out")
    done = import_features(spec, data, workspace)
    assert not done.fit.lines() and done.stage.next_command.startswith("fashion-ntm train")
    store = workspace.store(spec, data)
    keys = store.catalogue()
    rows = store.gather(
        "target", store.find("target", np.frombuffer(b"".join(keys.values()), np.uint8).reshape(-1, 16))
    )
    assert rows.dtype == np.float16 and all(np.array_equal(r, vector(i)) for i, r in zip(keys, rows, strict=True))
    stage = Experiment(spec, data, workspace, "cpu")
    session = data.sessions[0]
    first = stage.parts[0].batch(np.array([0]))
    assert np.array_equal(first.queries[0, 1].numpy(), vector(session.turns[1].reference, session.turns[1].text))
    assert len(list(train(stage, asked_runs(spec, ["avg", "lstm", "cat"])))) == 3
    summaries = evaluate(stage)
    assert len(summaries) == 3 and {summary["gallery"] for summary in summaries} == {"imported"}
    assert any("Imported features" in note for note in protocol_notes(read_runs("avg", summaries[:1])))


def test_the_arrays_are_the_fingerprint(tmp_path: Path, data: Dataset) -> None:
    from pipeline.extraction.extractors import load_extractor

    a, b = write(tmp_path / "a", data), write(tmp_path / "b", data, form="safetensors")
    fields = [load_extractor(spec_of(f), "cpu").semantic() for f in (a, b)]
    assert fields[0] == fields[1]  # neither the folder nor the kind of file
    queries = np.load(a / "query.npy")
    queries[-1, -1] += np.float16(0.25)
    np.save(a / "query.npy", queries)
    assert load_extractor(spec_of(a), "cpu").semantic() != fields[0]
    names = (b / "target.ids.txt").read_text().splitlines()
    lines(b / "target.ids.txt", names[1], names[0], *names[2:])
    assert load_extractor(spec_of(b), "cpu").semantic() != fields[1]


def test_without_concatenated_queries_every_model_but_cat_runs(tmp_path: Path, data: Dataset) -> None:
    folder, workspace = write(tmp_path / "mine", data, cat=False), Workspace(tmp_path / "out")
    with pytest.raises(ManifestError, match="rows missing"):
        import_features(spec_of(folder), data, workspace)
    spec = spec_of(folder, concatenated=False)
    import_features(spec, data, workspace)
    assert len(list(train(Experiment(spec, data, workspace, "cpu"), asked_runs(spec, ["avg", "lstm"])))) == 2
    assert len(evaluate(Experiment(spec, data, workspace, "cpu"), asked_runs(spec, ["avg", "lstm"]))) == 2
    with pytest.raises(FeatureError, match="leave model 'cat' out"):
        list(train(Experiment(spec, data, workspace, "cpu"), asked_runs(spec, ["cat"])))
        evaluate(Experiment(spec, data, workspace, "cpu"), asked_runs(spec, ["cat"]))


def test_partial_takes_what_there_is_and_says_what_is_left_out(tmp_path: Path, data: Dataset) -> None:
    gone = ("dress/2-1", "shirt/0-0")
    spec, workspace = spec_of(write(tmp_path / "mine", data, leave_out=gone)), Workspace(tmp_path / "out")
    with pytest.raises(ManifestError) as error:
        import_features(spec, data, workspace)
    assert all(repr(image) in str(error.value) for image in gone) and "--partial" in str(error.value)
    done = import_features(spec, data, workspace, partial=True)
    assert done.stage.extraction.tables["target"].failed == 2 and "'shirt/0-0'" in done.text()
    failures = workspace.store(spec, data).failures()
    assert {f.item for f in failures} == set(gone) and "hold no row" in failures[0].reason
    without = [s for s in data.split("train") if not {*gone} & set(s.targets)]
    assert len(Experiment(spec, data, workspace, "cpu").parts[0]) == len(without)


def test_a_dual_encoder_s_rows_go_through_a_composer(tmp_path: Path, data: Dataset) -> None:
    folder = tmp_path / "towers"
    folder.mkdir()
    images, texts = features(data)
    for table, rows in (("image", images), ("text", texts)):
        np.save(folder / f"{table}.npy", np.stack(list(rows.values())).astype(np.float32))
        kind = "id" if table == "image" else "text"
        lines(folder / f"{table}.ids.jsonl", *(json.dumps({kind: name}) for name in rows))
    spec = spec_of(folder).model_copy(update={"composer": Component(name="gated", hidden=8, fit={"epochs": 1})})
    workspace = Workspace(tmp_path / "out")
    assert import_features(spec, data, workspace).stage.next_command.startswith("fashion-ntm fit-composer")
    fit_composer_spec(spec, data, workspace)
    assert len(list(train(Experiment(spec, data, workspace, "cpu"), asked_runs(spec, ["avg"])))) == 1


def test_odd_ids_are_kept_apart(tmp_path: Path) -> None:
    """Unicode, quotes, spaces at the ends, 10 kB: what is another id is another row."""
    data = world(("dress",))
    odd = ["größe 上衣", ' "quoted" ', "a", "a ", " a", "x/../y", "z" * 10_000]
    old = list(data.images)[: len(odd)]
    text = data.model_dump_json()
    for n, (before, after) in enumerate(zip(old, odd, strict=True)):
        text = text.replace(json.dumps(before), f'"odd{n}"').replace(f'"odd{n}"', json.dumps(after, ensure_ascii=False))
    data = Dataset.model_validate_json(text)
    assert set(odd) < set(data.images)
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = {"target": [(i,) for i in data.images], "query": list(dict.fromkeys(data.queries()))}
    for table, names in rows.items():
        np.save(folder / f"{table}.npy", np.stack([vector(*n) for n in names]))
        forms = ({"id": n[0]} if table == "target" else {"reference": n[0], "text": n[1]} for n in names)
        lines(folder / f"{table}.ids.jsonl", *map(json.dumps, forms))
    spec, workspace = spec_of(folder), Workspace(tmp_path / "out")
    import_features(spec, data, workspace)
    store = workspace.store(spec, data)
    keys = store.catalogue()
    assert len(set(keys.values())) == len(data.images)
    for image in odd:
        row = store.find("target", np.frombuffer(keys[image], np.uint8)[None])
        assert np.array_equal(store.gather("target", row)[0], vector(image))


# ---- refused


def refusals() -> dict[str, tuple[Any, tuple[str, ...]]]:
    def nan(folder: Path) -> None:
        rows = np.load(folder / "target.npy")
        rows[3, 0], rows[5, 1] = np.nan, np.inf
        np.save(folder / "target.npy", rows)

    def other_width(folder: Path) -> None:
        np.save(folder / "target.npy", np.ones((60, D + 1), np.float16))

    def pickled(folder: Path) -> None:
        np.save(folder / "query.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)

    def append(folder: Path) -> None:
        with open(folder / "target.ids.txt", "a") as handle:
            handle.write("one more\n")

    def bad_turn(folder: Path) -> None:
        text = (folder / "query.ids.txt").read_text()
        (folder / "query.ids.txt").write_text(text.replace("dress3\t2", "dress3\tlast", 1))

    return {
        "NaN": (nan, ("NaN or Inf in 2 rows", "row 3 ('dress/0-3')", "target.npy")),
        "widths": (other_width, ("query has D = 6 and target D = 7",)),
        "dtype": (
            lambda f: np.save(f / "query.npy", np.ones((240, 6))),
            ("float64", "astype(numpy.float32)", "query.npy"),
        ),
        "shape": (lambda f: np.save(f / "query.npy", np.ones(6, np.float32)), ("[6]", "[rows, D]")),
        "no row": (lambda f: np.save(f / "query.npy", np.ones((0, 6), np.float32)), ("[0, 6]",)),
        "pickle": (pickled, ("query.npy", "holds Python objects, not numbers", "astype(numpy.float32)")),
        "cut": (
            lambda f: (f / "query.npy").write_bytes((f / "query.npy").read_bytes()[:-9]),
            ("query.npy", "truncated: its "),
        ),
        "count": (append, ("61 lines for 60 rows", "target.ids.txt")),
        "turn": (bad_turn, ("turn 'last' is no number of a turn", "line 8")),
        "no ids": (lambda f: (f / "query.ids.txt").unlink(), ("has no ids", "query.ids.jsonl")),
        "twice": (lambda f: (f / "query.ids.jsonl").write_text("{}\n"), ("query.ids.txt and query.ids.jsonl",)),
        "no target": (lambda f: (f / "target.npy").unlink(), ("holds query", "target.npy")),
        "empty": (lambda f: [p.unlink() for p in f.iterdir()], ("no table at all",)),
    }


@pytest.mark.parametrize("what", refusals())
def test_what_is_wrong_is_named(tmp_path: Path, data: Dataset, what: str) -> None:
    damage, words = refusals()[what]
    folder = write(tmp_path / "mine", data)
    damage(folder)
    with pytest.raises(ManifestError) as error:
        import_features(spec_of(folder), data, Workspace(tmp_path / "out"))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "out").exists()


def zipped() -> bytes:
    out = io.BytesIO()
    np.savez(out, features=np.ones((2, D)))
    return out.getvalue()


KINDS = {
    "zero bytes": (b"", "is an empty file, not a NumPy array (copy or export it again)"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
        "is a pointer file of Git LFS for 12,345 bytes, not the data, not a NumPy array (run `git lfs pull`",
    ),
    "annex": (b"/annex/objects/SHA256E-s9--0.npy\n", "is a pointer file of git-annex, not the data"),
    "npz": (zipped(), "is a zip archive (an .npz, or saved by torch.save), not a NumPy array (take the array out"),
    "gzip": (gzip.compress(b"x"), "is a gzip archive, not a NumPy array (unpack it first)"),
    "pickle": (pickle.dumps([1.0]), "is a Python pickle, not a NumPy array (pickles can run code"),
    "page": (b"<!DOCTYPE html><html>", "is a web page, not a NumPy array"),
    "other suffix": (save({"a": np.ones((2, D))}), "is a safetensors file, not a NumPy array (name it .safetensors)"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, not a NumPy array"),
    "unknown": (b"hello", "is a file of unknown kind, not a NumPy array (it begins with b'hello')"),
}


@pytest.mark.parametrize("what", KINDS)
def test_another_kind_of_file_is_named_by_its_first_bytes(tmp_path: Path, data: Dataset, what: str) -> None:
    content, message = KINDS[what]
    folder = write(tmp_path / "mine", data)
    (folder / "query.npy").write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        open_arrays(folder)
    head, line = str(caught.value).split("\n")
    assert head == "1 problem found" and "query.npy: " + message in line


def test_an_archive_beside_the_missing_table_is_named(tmp_path: Path, data: Dataset) -> None:
    folder = write(tmp_path / "mine", data)
    (folder / "query.npy").unlink()
    (folder / "query.npz").write_bytes(zipped())
    with pytest.raises(ManifestError, match=r"query\.npz: is a zip archive .* which is not read \(take the array out"):
        open_arrays(folder)


def test_ids_with_a_mark_in_utf16_and_as_a_json_list(tmp_path: Path, data: Dataset) -> None:
    folder = write(tmp_path / "mine", data)
    ids = folder / "target.ids.txt"
    names = ids.read_text().splitlines()
    plain = open_arrays(folder)["target"]
    for encoding in ("utf-8-sig", "utf-16"):
        ids.write_bytes("\r\n".join([*names, ""]).encode(encoding))
        found = open_arrays(folder)["target"]
        assert (found.rows_by_name, found.names) == (plain.rows_by_name, plain.names)
    ids.unlink()
    (folder / "target.ids.jsonl").write_text(json.dumps([{"id": name} for name in names], indent=1))
    with pytest.raises(ManifestError) as caught:
        open_arrays(folder)
    _, line = str(caught.value).split("\n")
    assert "a JSON list; one object per line is expected" in line
    (folder / "target.ids.jsonl").write_text('{"id": "\\ud800"}\n{"id": ' + "9" * 5000 + "}\n" + '{"id": "c"}\n' * 58)
    with pytest.raises(ManifestError, match="half of a surrogate pair") as caught:
        open_arrays(folder)
    assert "more than 4,300 digits" in str(caught.value) and len(str(caught.value)) < 20_000


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path, data: Dataset) -> None:
    folder = write(tmp_path / "mine", data, form="safetensors")
    whole = (folder / "query.safetensors").read_bytes()
    for content in (b"", whole[:40], whole[:-7], b"\xff" * 64):
        (folder / "query.safetensors").write_bytes(content)
        with pytest.raises(ManifestError, match=r"query\.safetensors"):
            open_arrays(folder)
    save_file({"a": np.ones((2, 2), np.float32), "b": np.ones((2, 2), np.float32)}, folder / "query.safetensors")
    with pytest.raises(ManifestError, match="name the one to read 'features'"):
        open_arrays(folder)


def test_two_answers_to_one_question_are_a_conflict(tmp_path: Path, data: Dataset) -> None:
    first = data.sessions[0]
    twin = first.model_copy(update={"id": "twin"})
    data = data.model_copy(update={"sessions": (*data.sessions, twin)})
    folder = write(tmp_path / "mine", data)
    assert not fit(open_arrays(folder), data, True).lines()  # equal rows are one row
    rows = np.load(folder / "query.npy")
    names = (folder / "query.ids.txt").read_text().splitlines()
    rows[names.index("twin\t1")] += np.float16(1)
    np.save(folder / "query.npy", rows)
    with pytest.raises(ManifestError, match="ask the same"):
        import_features(spec_of(folder), data, Workspace(tmp_path / "out"), partial=True)


def test_a_plain_extract_without_a_check_records_what_is_missing(tmp_path: Path, data: Dataset) -> None:
    from pipeline.jobs.stage1 import extract_spec

    spec, workspace = spec_of(write(tmp_path / "mine", data, leave_out=("dress/0-0",))), Workspace(tmp_path / "out")
    report = extract_spec(spec, data, workspace, "cpu", progress="silent").extraction
    assert report.tables["target"].failed == 1 and Store.open(report.path).failures()[0].item == "dress/0-0"
