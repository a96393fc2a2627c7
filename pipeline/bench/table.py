"""Seconds of a whole table from store to Markdown, by stage: reading, training, ranking, statistics, printing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cache import Store, StoreWriter
from manifests.identity import caption_key, pair_key, stack_keys, text_key
from manifests.schema import Gallery, Session, Training, Turn
from manifests.table_spec import BlockSpec, ResultsTable, RowSpec
from pipeline.analysis.ablation.timing import training_seconds, untrained
from pipeline.analysis.render import render as text_of
from pipeline.analysis.results_table import build_results_table
from pipeline.core.device import resolve_device, seconds_of
from pipeline.evaluation.evaluate import Evaluation, evaluate, load_candidates
from pipeline.evaluation.files import ResultFiles
from pipeline.training.checkpoint import load_model
from pipeline.training.data import session_features
from pipeline.training.errors import DivergenceError
from pipeline.training.job import Trained, TrainRequest, train_runs
from pipeline.training.models import models as registry
from pipeline.training.runs import Run
from pipeline.training.validate import embed, scorer

TRAINED = ("lstm", "gru", "transformer", "no_memory", "turn_weights", "cfir", "dialog_manager", "v_ntm", "cm_ntm")
MODELS = ("avg", "ewma", *TRAINED)
SUBSET = "every second session"


def run(
    models: Sequence[str] = MODELS,
    seeds: int = 3,
    train: int = 400,
    test: int = 200,
    gallery: int = 2000,
    turns: int = 4,
    dim: int = 256,
    epochs: int = 2,
    device: str = "auto",
    progress: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Time each stage of one table on random features [dim] of ``train`` and ``test`` sessions of ``turns`` turns.

    Training and ranking are also predicted before they run, as ``ablate --dry-run`` predicts them.

    ``gallery``: candidates of the single category. ``seeds``: runs of a trained model, side by side on CUDA.
    """
    target, seconds = resolve_device(device), dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        sessions, images = _sessions(train + test, gallery, turns)
        store = _store(Path(folder) / "store", sessions, images, dim)
        with _timed(seconds, "reading"):
            fit, held = (session_features(store, s).to(target) for s in (sessions[:train], sessions[train:]))
            candidates = load_candidates(store, [Gallery(category="all", split="test", images=images)])
        by_model, told, summaries, predicted = {}, {}, {}, {"training": 0.0, "ranking": 0.0}
        together = target.type == "cuda"
        for model in models:
            progress(f"training and ranking {model}")
            runs, training, trained = Path(folder) / "runs", Training(epochs=epochs), registry.get(model).trainable
            shared, seeds_of = (runs, "bench", store.fingerprint), range(seeds if trained else 1)
            requests = [TrainRequest(*shared, Run(model, {}, training, seed), fit) for seed in seeds_of]
            told[model] = training_seconds(requests, together)[0]
            predicted["training"] += told[model]
            blank, groups = untrained(requests[0]), [requests] if together else [[r] for r in requests]
            predicted["ranking"] += len(requests) * seconds_of(partial(_rank, blank, held, candidates), target)
            with _timed(seconds, "training"):
                found = [one for group in groups for one in train_runs(group)]
            for error in (one for one in found if isinstance(one, DivergenceError)):
                raise error
            done = [one for one in found if isinstance(one, Trained)]
            by_model[model] = sum(one.summary["seconds"] for one in done)
            with _timed(seconds, "ranking"):
                summaries[model] = [_evaluate(one.folder, held, candidates, target) for one in done]
        blocks = (BlockSpec(subset="all", label="All sessions"), BlockSpec(subset=SUBSET, label=SUBSET))
        rows = tuple(RowSpec(model=model, label=model) for model in models)
        table = ResultsTable(
            kind="results", title="bench table", run="bench", tested=models[-1], blocks=blocks, rows=rows
        )
        with _timed(seconds, "statistics"):
            built = build_results_table(table, lambda row, _: summaries[row.model], known=models, run="bench")
        with _timed(seconds, "printing"):
            markdown = text_of(built, "md")
    sizes = {"models": len(models), "seeds": seeds, "train": train, "test": test, "gallery": gallery, "dim": dim}
    counts = {"runs": sum(map(len, summaries.values())), "lines": len(markdown.splitlines())}
    spent = {"seconds": seconds, "predicted": predicted, "training_s": by_model, "predicted_training_s": told}
    return {"device": str(target), "sizes": sizes, **spent, **counts}


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


def _sessions(count: int, gallery: int, turns: int) -> tuple[tuple[Session, ...], tuple[str, ...]]:
    """Return ``count`` sessions over ``gallery`` images, without common queries."""
    images = tuple(f"image {n}" for n in range(gallery))
    drawn = np.random.default_rng(0).integers(0, gallery, (count, turns + 1))
    made = []
    for n, row in enumerate(drawn):
        said = tuple(Turn(reference=images[i], captions=(f"feedback {n} {t}",)) for t, i in enumerate(row[:-1]))
        made.append(Session(id=f"{n}", category="all", split="train", turns=said, target=images[row[-1]]))
    return tuple(made), images


def _store(path: Path, sessions: Sequence[Session], images: Sequence[str], dim: int) -> Store:
    rng = np.random.default_rng(1)
    asked = [(t.reference, t.text) for s in sessions for t in s.turns]
    asked += [(s.turns[0].reference, s.text) for s in sessions]
    with StoreWriter(path, dataset="bench", extractor="random", fields={"dim": dim}, execution={}) as writer:
        writer.bind({image: caption_key(image) for image in images})
        keys = [pair_key(caption_key(image), text_key(text)) for image, text in dict.fromkeys(asked)]
        writer.commit("query", stack_keys(keys), rng.standard_normal((len(keys), dim), dtype=np.float32))
        keys = [caption_key(image) for image in images]
        writer.commit("target", stack_keys(keys), rng.standard_normal((len(keys), dim), dtype=np.float32))
    return Store.open(path)


def _rank(model: Any, test: Any, candidates: Any) -> Evaluation:
    """Rank the test sessions with ``model``, as ``evaluate`` does."""
    subsets = {SUBSET: {s.id for s in test.sessions[::2]}}
    score = scorer(model, test) if model.scores else None
    return evaluate(embed(model, test).cpu().numpy(), test.sessions, candidates, subsets, score=score)


def _evaluate(folder: Any, test: Any, candidates: Any, device: Any) -> dict[str, Any]:
    """Write one run's ranks and summary as ``evaluate`` does; return the summary with the path of the results."""
    files, record = ResultFiles.of(folder.path), folder.record()["identity"]
    result = _rank(load_model(folder.path, device), test, candidates)
    about = {"dataset": "bench", "extractor": "random", "gallery": "image", "store": record["store"]}
    about |= {"run": folder.id, "model": folder.model, "seed": record["seed"], "weights": files.weights()}
    summary = result.summary(**about)
    files.save(result, summary)
    return {**summary, "results": str(files.results)}


def render(figures: dict[str, Any]) -> str:
    """Return the seconds of each stage, predicted where it can be, and of each model's training, as text."""
    total, sizes = sum(figures["seconds"].values()), figures["sizes"].items()
    lines = [", ".join(f"{key} {value}" for key, value in sizes) + f", on {figures['device']}", ""]
    for name, value in figures["seconds"].items():
        lines.append(f"{name:12} {value:8.2f} s  {value / total:4.0%}{_told(figures['predicted'].get(name), value)}")
    lines += [f"{'in all':12} {total:8.2f} s  {figures['runs']} runs", "", "training, all seeds:"]
    told = figures["predicted_training_s"]
    lines += [f"  {name:14} {value:8.2f} s{_told(told[name], value)}" for name, value in figures["training_s"].items()]
    return "\n".join(lines)


def _told(predicted: float | None, seconds: float) -> str:
    """Return the prediction and its difference from the measured ``seconds``; "" if there is none."""
    return f"   predicted {predicted:.2f} s ({predicted / seconds - 1:+.0%})" if predicted and seconds else ""
