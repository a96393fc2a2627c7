"""The shape of the project: imports point one way, light parts stay light, modules stay short."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    *sorted(p for top in ("manifests", "cache", "pipeline") for p in (ROOT / top).rglob("*.py")),
    ROOT / "cli.py",
]
MOST_LINES = 400

# folder -> top-level names that nothing below it may import
FORBIDDEN = {
    "manifests": {"torch", "h5py", "transformers", "cache", "pipeline", "cli"},
    "cache": {"torch", "transformers", "PIL", "pipeline", "cli"},
    "pipeline/training": {"transformers", "PIL", "cli", "pipeline.extraction"},
    "pipeline/evaluation": {"transformers", "PIL", "cli", "pipeline.extraction", "pipeline.training"},
    "pipeline/analysis": {"transformers", "PIL", "cli", "pipeline.extraction"},
    "pipeline/composition": {"transformers", "PIL", "cli", "pipeline.extraction"},
    "pipeline": {"cli"},
}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports_of(path: Path) -> set[str]:
    """Every imported name with all its prefixes: ``a.b`` gives {"a", "a.b"}."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in found:
            parts = name.split(".")
            names |= {".".join(parts[: n + 1]) for n in range(len(parts))}
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(bad)
        for path in (ROOT / folder).rglob("*.py")
        if (bad := imports_of(path) & FORBIDDEN[folder])
    }
    assert not wrong


# module -> packages that are not loaded after it and those above it are imported, in one process
LIGHT = {
    "cli": "torch,transformers,h5py,numpy,pydantic,dask,PIL,rich",
    "manifests.load": "torch,transformers,h5py",
    "cache": "torch,transformers,PIL",
    "pipeline.training.fit": "transformers,PIL",
    "pipeline.jobs.stage2": "transformers,PIL",
    "pipeline.jobs.stage1": "transformers,dask",
    "pipeline.views.retrieval.testbed": "starlette,uvicorn,playwright,matplotlib",
    "pipeline.views.study.results": "starlette,uvicorn,playwright,matplotlib",
}


@pytest.mark.slow
def test_importing_a_light_part_loads_nothing_heavy() -> None:
    lines = ["import sys"]
    for module, unwanted in LIGHT.items():
        lines += [f"import {module}", f"print({module!r}, [m for m in {unwanted.split(',')!r} if m in sys.modules])"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{module} []" for module in LIGHT]


def test_modules_stay_short() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


def test_nothing_unpickles_evaluates_or_trusts_remote_code() -> None:
    """torch.load only with weights_only=True; no pickle, no eval or exec."""
    wrong = []
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("eval", "exec", "pickle.load", "pickle.loads", "torch.jit.load"):
                    wrong.append(f"{path.name}:{node.lineno} {name}")
                if name == "torch.load" and "weights_only=True" not in ast.unparse(node):
                    wrong.append(f"{path.name}:{node.lineno} torch.load without weights_only=True")
                if any(k.arg == "trust_remote_code" and getattr(k.value, "value", None) is True for k in node.keywords):
                    wrong.append(f"{path.name}:{node.lineno} trust_remote_code=True")
    assert wrong == []


MAP = ROOT / "docs" / "architecture.md"
# heading of a walk -> files that a reader may have to open at most
WALKS = {"table cell": 25, "`extract SPEC`": 12, "new extractor": 5, "store's format": 10, "CM-NTM on a GPU": 12}


def test_the_map_names_what_exists() -> None:
    named = re.findall(r"`((?:manifests|cache|pipeline|tests|docs)/[\w./-]*|cli\.py)`", MAP.read_text(encoding="utf-8"))
    assert len(set(named)) > 40
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_folder_is_on_the_map() -> None:
    text = MAP.read_text(encoding="utf-8")
    folders = [p for p in (ROOT / "pipeline").iterdir() if p.is_dir() and (p / "__init__.py").exists()]
    assert [p.name for p in folders if f"`pipeline/{p.name}/`" not in text] == []
    assert [p.name for p in (ROOT / "pipeline").glob("*.py")] == ["__init__.py"]  # no loose module


@pytest.mark.parametrize(("walk", "most"), WALKS.items())
def test_walks_are_short(walk: str, most: int) -> None:
    (section,) = [s for s in MAP.read_text(encoding="utf-8").split("\n## ") if walk in s.split("\n")[0]]
    files = set(re.findall(r"`([\w./-]+\.py)`", section))
    assert 3 <= len(files) <= most


def test_folders_of_the_pipeline_form_no_cycle() -> None:
    """Imports between folders have an order; those for type annotations alone are left out."""
    arrows: dict[str, set[str]] = {}
    for path in (ROOT / "pipeline").rglob("*.py"):
        tree = tree_of(path)
        typing = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        here = path.relative_to(ROOT).parts[1]
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ImportFrom)
                and id(node) not in typing
                and (node.module or "").startswith("pipeline.")
            ):
                arrows.setdefault(here, set()).add(node.module.split(".")[1])
    left = {here: there - {here} for here, there in arrows.items()}
    while free := [here for here, there in left.items() if not there & left.keys()]:
        for here in free:
            del left[here]
    assert left == {}


# Packages that functions import: optional extras, slow to import, or absent on some systems.
LATE = {
    "matplotlib",
    "optuna",
    "dask",
    "distributed",
    "peft",
    "pyarrow",
    "jinja2",
    "markupsafe",
    "uvicorn",
    "huggingface_hub",
}
LATE |= {
    "transformers",
    "rich",
    "fcntl",
    "resource",
    "torch.utils.tensorboard",
    "mlflow",
    "wandb",
    "trackio",
    "onnxruntime",
    "faiss",
    "pandas",
    "torchvision",
}
# Folders and files whose functions import more, and why.
LATE_IN = {
    "pipeline/commands/": "`--help` stays fast",
    "pipeline/bench/": "subjects of measurements, and other projects",
    "pipeline/jobs/listing.py": "`ls` loads the parts of the listed kinds only",
    "pipeline/core/doctor.py": "reports a missing package",
    "pipeline/training/backends/choice.py": "numba and triton are optional",
    "pipeline/views/serve/run.py": "uvicorn, on which the connections are built, is optional",
    "pipeline/extraction/extractors/_joint.py": "`ls extractors` does not import transformers, which `pretrain` needs",
}


def test_functions_import_nothing() -> None:
    """Modules import at the top, so that a reader sees what they need and a missing name fails at once."""
    found = []
    for path in SOURCES[:-1]:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(tuple(LATE_IN)):
            continue
        functions = (n for n in ast.walk(tree_of(path)) if isinstance(n, ast.FunctionDef))
        for node in (inner for function in functions for inner in ast.walk(function)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = node.names[0].name if isinstance(node, ast.Import) else node.module or ""
                if not any(f"{imported}.".startswith(f"{package}.") for package in LATE):
                    found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert found == []
