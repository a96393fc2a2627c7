"""``export``: write the graphs of a run to a folder, and check each against PyTorch on random inputs."""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from manifests.errors import FashionNTMError, IncompleteError
from manifests.load import load_dataset, recorded_spec
from pipeline.composition.composers.base import Composer
from pipeline.core.workspace import Workspace
from pipeline.export.steps import Graph, as_tuple, graphs_of, random_inputs, step_of
from pipeline.jobs.managed_runs import run_named
from pipeline.training.checkpoint import load_model
from pipeline.training.models.dialog_manager import DialogManager
from pipeline.training.runs import RunFolder
from pipeline.views.retrieval.queries import store_composer

Format = Literal["torch", "onnx"]
SUFFIX = {"torch": ".pt2", "onnx": ".onnx"}
ABOUT, STATE = "export.json", "state.npz"
TOLERANCE = 1e-4  # of float32 outputs, relative to the largest value of PyTorch's
BATCHES = (1, 2, 7)


class ExportError(FashionNTMError):
    """A graph that cannot be exported, or whose outputs differ from PyTorch's."""


@dataclass(frozen=True)
class ExportedRun:
    """Result of an export: the folder and the content of export.json."""

    folder: Path
    about: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"folder": str(self.folder), **self.about}

    def text(self) -> str:
        lines = [f"folder {self.folder}"]
        for graph in self.about["graphs"]:
            inputs = ", ".join(f"{i['name']} {i['shape']}" for i in graph["inputs"][:3])
            more = ", ..." if len(graph["inputs"]) > 3 else ""
            gap = f"differs from PyTorch by {graph['difference']:.1e} at most"
            lines.append(f"{graph['file']:16} {inputs}{more}; {gap}")
        return "\n".join([*lines, *([f"no step graph: {self.about['no_step']}"] if self.about["no_step"] else [])])


def export_named(
    given: str, to: Path, form: Format, turns: int, data: Path, out: Path, log: Callable[[str], None]
) -> ExportedRun:
    """Export the run that ``given`` names. Without its dataset, the composer is left out, with the reason in the log.

    Raises IncompleteError for a run that is not finished, and as ``export_run``.
    """
    folder = run_named(given, out / "runs")
    if folder.state != "finished":
        raise IncompleteError(f"run {folder.id} is {folder.state}: finish it with `train` first")
    return export_run(folder, _composer(folder, data, log), to, form, turns)


def _composer(folder: RunFolder, data: Path, log: Callable[[str], None]) -> Composer | None:
    try:
        spec = recorded_spec(folder.record().get("spec"))
        return store_composer(spec, load_dataset(spec, data), Workspace(folder.path.resolve().parents[3]))
    except (FashionNTMError, ValueError) as error:
        log(f"the composer is left out: {str(error).splitlines()[0]}")
        return None


def export_run(folder: RunFolder, composer: Composer | None, to: Path, form: Format, turns: int = 8) -> ExportedRun:
    """Write the graphs of a finished run, the state before the first turn and ``export.json`` to ``to``, a new folder.

    Each graph is checked for batches of 1, 2 and 7 random inputs. Raises ExportError for a difference and for a model
    whose score is no function of f'_qry(N) and f_tar alone, IncompleteError for a missing package or an unfinished run.
    """
    packages = ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ()
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise IncompleteError(f"--format onnx needs {', '.join(missing)}: python -m pip install 'fashion-ntm[onnx]'")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ExportError(f"{to} is not an empty folder: name another with --to, or delete it first")
    model = load_model(folder.path)
    if model.scores and not isinstance(model, DialogManager):
        what = f"{model.name} scores each candidate against all turns, which no f'_qry and index can"
        raise ExportError(f"{what}: export another model (`ls runs`), or rank with `serve` and the Python interface")
    step = step_of(model.eval())
    to.mkdir(parents=True, exist_ok=True)
    graphs = []
    for graph in graphs_of(model, composer, turns):
        file = to / (graph.name + SUFFIX[form])
        with torch.no_grad(), quiet():
            call = (_torch if form == "torch" else _onnx)(graph, file)
        if graph.name == "step":
            first = {n: value[:1].detach().numpy() for n, value in graph.inputs.items() if n not in ("query", "turn")}
            np.savez(to / STATE, **first)  # type: ignore[arg-type]
        described = {"name": graph.name, "about": graph.about, "file": file.name, **_interface(graph)}
        graphs.append({**described, "difference": _check(graph, call)})
    about = {
        "format": "fashion-ntm export 1",
        "run": folder.id,
        "model": folder.model,
        "options": model.options.model_dump(mode="json"),
        "store": folder.record().get("identity", {}).get("store", ""),
        "dim": model.dim,
        "file_format": form,
        "ranking": "minus the squared distance" if model.scores else "cosine",
        "graphs": graphs,
        "no_step": step if isinstance(step, str) else "",
        "torch": str(torch.__version__),
    }
    (to / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return ExportedRun(to, about)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what torch says about its own parts while it traces: deprecations, and packages that it looks for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        logger.setLevel(level)


def _interface(graph: Graph) -> dict[str, Any]:
    inputs = []
    for name, t in graph.inputs.items():
        shape = ["batch", *t.shape[1:]] if t.dim() else []
        inputs.append({"name": name, "shape": shape, "dtype": str(t.dtype).removeprefix("torch.")})
    return {"inputs": inputs, "outputs": list(graph.outputs)}


def _check(graph: Graph, call: Callable[[Sequence[Tensor]], Sequence[np.ndarray]]) -> float:
    """Return the largest difference from PyTorch over random inputs. Raises ExportError above the tolerance."""
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for batch in BATCHES:
        inputs = random_inputs(graph, batch, generator)
        with torch.no_grad():
            expected = as_tuple(graph.module(*inputs))
        for name, want, got in zip(graph.outputs, expected, call(inputs), strict=True):
            gap = float(np.abs(want.detach().numpy() - got).max()) / max(1.0, float(want.abs().max()))
            if not gap <= TOLERANCE:
                where = f"graph {graph.name}, output {name}, batch {batch}"
                raise ExportError(f"{where}: differs from PyTorch by {gap:.1e}")
            worst = max(worst, gap)
    return worst


def _program(graph: Graph) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    shapes = [{0: batch} if example.dim() else None for example in graph.inputs.values()]
    code = type(graph.module).forward.__code__
    named = code.co_argcount - 1  # before ``*state``, if the module has it
    dynamic = (*shapes[:named], tuple(shapes[named:])) if code.co_flags & inspect.CO_VARARGS else tuple(shapes)
    try:
        return torch.export.export(graph.module, tuple(graph.inputs.values()), dynamic_shapes=dynamic)
    except Exception as error:  # torch raises many kinds of error for what it cannot trace
        first = str(error).strip().split("\n")[0][:300]
        raise ExportError(f"graph {graph.name} cannot be traced by torch.export: {first}") from error


def _torch(graph: Graph, file: Path) -> Callable[[Sequence[Tensor]], Sequence[np.ndarray]]:
    torch.export.save(_program(graph), file)
    module = torch.export.load(file).module()
    return lambda inputs: [output.detach().numpy() for output in as_tuple(module(*inputs))]


def _onnx(graph: Graph, file: Path) -> Callable[[Sequence[Tensor]], Sequence[np.ndarray]]:
    import onnxruntime

    program = torch.onnx.export(
        _program(graph), input_names=list(graph.inputs), output_names=list(graph.outputs), dynamo=True, verbose=False
    )
    assert program is not None
    program.save(os.fspath(file), external_data=False)
    session = onnxruntime.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"])
    names = [found.name for found in session.get_inputs()]

    def call(inputs: Sequence[Tensor]) -> Sequence[np.ndarray]:
        given = {name: value.detach().numpy() for name, value in zip(graph.inputs, inputs, strict=True)}
        return session.run(list(graph.outputs), {name: given[name] for name in names})

    return call
