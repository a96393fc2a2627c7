"""The code of docs/python.md runs as it is written, on the small demo; and what the interface refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache import StoreLookupError
from manifests.errors import FashionNTMError, ManifestError
from pipeline.api import Engine, open_store, records, train
from pipeline.training.errors import FeatureError
from tests.pipeline.small_demo import Project

PAGE = Path(__file__).resolve().parents[3] / "docs" / "python.md"


@pytest.fixture(scope="module")
def engine(demo: Project) -> Engine:
    return Engine.open(demo.spec, demo.folder, demo.folder, device="cpu")


def test_the_code_of_the_page_runs(
    demo: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pandas", reason="no pandas: pip install 'fashion-ntm[test]'")
    monkeypatch.chdir(tmp_path)
    blocks, known = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S), dict[str, Any]()
    assert len(blocks) == 4
    for block in blocks:
        code = block.replace('"out/demo"', repr(str(demo.folder))).replace('"demo"', repr(str(demo.file)))
        exec(compile(code, str(PAGE), "exec"), known)
    assert known["rows"] and len(known["hits"]) == 10 and len(known["dialogue"].turns) == 1
    assert len(known["frame"]) == len(records(demo.file, demo.folder, demo.folder))
    assert known["tensor"].shape == (3, known["features"].tables["image"][1])
    assert known["outputs"].shape == np.asarray(known["queries"][0]).shape
    assert (tmp_path / "out/arrays/runs/arrays/cm_ntm").is_dir() and "R@5" in capsys.readouterr().out


def test_a_run_opens_by_folder_and_by_id(demo: Project, engine: Engine) -> None:
    run = demo.experiment().folder(next(r for r in demo.experiment().current_runs() if r.model == "ewma"))
    for given, out in ((run.path, "elsewhere"), (run.id, demo.folder)):
        opened = Engine.open(given, demo.folder, out, device="cpu", cached_only=True)
        assert opened.models == ["ewma"]


def test_files_pictures_and_ids_start_the_same_dialogue(demo: Project, engine: Engine, tmp_path: Path) -> None:
    image = engine.ids()[0]
    file = demo.dataset.images_root / demo.dataset.images[image].file
    by_id = engine.start(image).say("in red")
    assert [h.id for h in engine.start(file).say("in red")] == [h.id for h in by_id]
    assert [h.id for h in engine.start(Image.open(file)).say("in red")] == [h.id for h in by_id]
    assert engine.similar(image, 1)[0].id == image and len(engine.find("a red dress", 4)) == 4
    dialogue = engine.start(file, model="ewma")
    dialogue.say("in red")
    dialogue.save(tmp_path / "d.json")
    assert engine.resume(tmp_path / "d.json").results() == dialogue.results()


def test_refusals_name_the_nearest_and_the_next_step(demo: Project, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="neither a catalog id nor a file"):
        engine.start("nothing.jpg")
    with pytest.raises(ManifestError, match="no such gallery"):
        engine.similar(engine.ids()[0], gallery="shoes")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(FashionNTMError, match="not a saved dialogue"):
        engine.resume(tmp_path / "bad.json")
    dialogue = engine.start(engine.ids()[0])
    dialogue.say("in red")
    dialogue.save(tmp_path / "d.json")
    text = (tmp_path / "d.json").read_text()
    weights = next(iter(engine.talks.trained.values())).weights
    (tmp_path / "d.json").write_text(text.replace(weights, "0" * 64))
    with pytest.raises(FashionNTMError, match="other features or runs"):
        engine.resume(tmp_path / "d.json")
    features = open_store(engine.talks.queries.backbone.path)
    with pytest.raises(StoreLookupError, match="no row of image"):
        features.images(["nothing"])
    with pytest.raises(StoreLookupError, match="has no row of"):
        features.texts(["never said before"])


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    good = [np.ones((2, 4)), np.ones((3, 4))]
    with pytest.raises(FeatureError, match="session 1"):
        train(good, [np.ones((2, 4)), np.ones((2, 4))], out=tmp_path)
    with pytest.raises(FeatureError, match="NaN"):
        train(good, [np.ones((2, 4)), np.full((3, 4), np.nan)], out=tmp_path)
    with pytest.raises(ManifestError, match="did you mean 'epochs'"):
        train(good, good, training={"epoch": 1}, out=tmp_path)
