"""Ranked lists of runs for other tools, and evaluation of ranked lists of other systems."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from cache.catalogue import ENCODING
from cache.files import replace_atomically, write_json
from manifests.errors import IncompleteError, ManifestError, Problem, Problems, nearest
from manifests.identity import digest, file_digest
from manifests.schema import Dataset
from manifests.views import View
from pipeline.core.binding import StaleError
from pipeline.core.workspace import Workspace
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.files import load_results, load_summary, save_results
from pipeline.evaluation.ranked import evaluate_ranked
from pipeline.evaluation.ranked_files import FILES, Ranked, coded, ranked_lists, write_ranked
from pipeline.jobs.experiment import Experiment
from pipeline.jobs.identities import Run
from pipeline.training.validate import embed, scorer

SERVER_TOP = 50  # candidates per query that the servers of CIRR and CIRCO accept


def write_results(experiment: Experiment, run: Run, form: str, folder: Path, top: int) -> list[Path]:
    """Write the ranked test sessions of a trained run in ``form`` to ``folder``; return the files.

    BEIR: one folder per category with corpus, queries, qrels, their features as .npy and the run. Raises ManifestError
    for categories that are no folder names, or one folder on a disk that ignores case, and for ids with a tab or newline.
    """
    if form == "beir":
        _refuse_names(experiment.dataset, experiment.candidates)
    folder.mkdir(parents=True, exist_ok=True)
    lists = list(_lists(experiment, run, min(top, SERVER_TOP) if form in ("cirr", "circo") else top))
    tag = f"{run.model}-{experiment.folder(run).id}"
    about = {
        "dataset": f"{experiment.dataset.name}/test",
        "galleries": {c: f"{experiment.dataset.name}/test/{c}" for c in experiment.candidates},
        **{"queries": "session ids", "documents": "image ids"},
        **{"run": experiment.folder(run).id, "model": run.model, "seed": run.seed, "top": top},
    }
    write_json(folder / "about.json", about, ENCODING[1])
    if form == "beir":
        return [f for category in experiment.candidates for f in _beir(experiment, run, category, lists, folder, tag)]
    path = folder / FILES[form]
    write_ranked(path, form, [ranked for ranked, _ in lists], tag)
    if form != "trec":
        return [path]
    qrels = folder / "qrels.trec"
    replace_atomically(qrels, "".join(f"{coded(r.session)} 0 {coded(target)} 1\n" for r, target in lists).encode())
    return [path, qrels]


def _lists(experiment: Experiment, run: Run, top: int) -> Iterator[tuple[Ranked, str]]:
    """Return (ranked list, target) of each test session with features, in order of categories."""
    model = experiment.model(run)
    features = experiment.viewed(model)
    queries = embed(model, features).cpu().numpy()
    score = scorer(model, features) if model.scores else None
    return ranked_lists(queries, features.sessions, experiment.candidates, top, score)


def _refuse_names(dataset: Dataset, categories: Iterable[str]) -> None:
    """Raise ManifestError for categories that are no names of separate folders, and ids that break a line of qrels."""
    problems = Problems("--format beir")
    first: dict[str, str] = {}
    for name in categories:
        place, other = f"category {name!r}", first.setdefault(name.casefold(), name)
        if name in (".", "..") or set(name) & set("/\\:\0"):
            problems.add(place, "a category becomes a folder name", "rename it, or use --format trec")
        elif other != name:
            fix = "rename one, or use --format trec"
            problems.add(place, f"the folder of category {other!r} is the same one on a disk that ignores case", fix)
    for kind, ids in (("image", dataset.images), ("session", (s.id for s in dataset.split("test")))):
        for name in ids:
            if set(name) & set("\t\n\r"):
                problems.add(f"{kind} {name!r}", "qrels are lines with tabs", "rename it, or use --format trec")
    problems.raise_if_any()


def _beir(
    experiment: Experiment, run: Run, category: str, lists: list[tuple[Ranked, str]], folder: Path, tag: str
) -> list[Path]:
    place, gallery, model = folder / category, experiment.candidates[category], experiment.model(run)
    features = experiment.viewed(model)
    (place / "qrels").mkdir(parents=True, exist_ok=True)
    texts = {s.id: s.text for s in features.sessions if s.category == category}
    captions = {i: experiment.dataset.images[i].caption or "" for i in gallery.images}
    mine = [(r, t) for r, t in lists if r.session in texts]
    corpus = [{"_id": i, "title": "", "text": captions[i]} for i in gallery.images]
    queries = [{"_id": r.session, "text": texts[r.session]} for r, _ in mine]
    for name, rows in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        replace_atomically(place / name, text.encode())
    qrels = "".join(f"{r.session}\t{t}\t1\n" for r, t in mine)
    replace_atomically(place / "qrels" / "test.tsv", f"query-id\tcorpus-id\tscore\n{qrels}".encode())
    write_ranked(place / "run.trec", "beir", [r for r, _ in mine], tag)
    np.save(place / "corpus.npy", gallery.features)
    made = ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "run.trec", "corpus.npy"]
    if not model.scores:
        number = {s.id: n for n, s in enumerate(features.sessions)}
        np.save(place / "queries.npy", embed(model, features).cpu().numpy()[[number[r.session] for r, _ in mine]])
        made.append("queries.npy")
    return [place / name for name in made]


@dataclass(frozen=True)
class RankedFolder:
    """Evaluation of another system's list: OUT/ranked/<dataset>[-<clean split>]/<name>/{results.h5, summary.json}."""

    folder: Path

    @classmethod
    def of(cls, workspace: Workspace, dataset: Dataset, name: str) -> RankedFolder:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            fix = "use letters, digits, '.', '_' and '-'"
            raise ManifestError([Problem("--name", name, "a list's name becomes a folder name", fix)])
        place = "-".join(filter(None, (dataset.name, dataset.protocol)))
        return cls(workspace.out / "ranked" / place / name)

    @property
    def results(self) -> Path:
        return self.folder / "results.h5"

    def save(self, evaluation: Evaluation, summary: dict[str, Any]) -> None:
        save_results(self.results, evaluation, self.folder.name)
        write_json(self.folder / "summary.json", summary)

    def load(self, dataset: Dataset, view: View) -> dict[str, Any]:
        """Return the summary of ``view`` (sessions of some length). Raises IncompleteError if there is none, StaleError
        if its sessions, galleries or train pairs are not those of ``dataset``."""
        name, again = self.folder.name, f"evaluate SPEC --ranked FILE --name {self.folder.name}"
        if not self.results.is_file():
            known = sorted(p.name for p in self.folder.parent.glob("*") if (p / "results.h5").is_file())
            what = f"no ranked list {name!r} is scored on {dataset.name}; {nearest(name, known)}"
            raise IncompleteError(f"{what}: run `{again}`")
        summary = load_summary(self.folder / "summary.json")
        if summary.get("identity") != _identity(dataset):
            what = f"ranked list {name!r} was scored on other sessions, galleries or train pairs"
            raise StaleError(f"{what} than {dataset.name} has now: run `{again}` again")
        if view.turns is None:
            return summary | {"results": str(self.results)}
        lengths = {s.id: len(s.turns) for s in dataset.split("test")}
        part = _part(load_results(self.results), lengths, view.turns)
        there = RankedFolder(self.folder / view.name)
        there.save(part, summary | part.summary(skipped={}))
        return load_summary(there.folder / "summary.json") | {"results": str(there.results)}


def _part(evaluation: Evaluation, lengths: dict[str, int], turns: int) -> Evaluation:
    """Return the sessions of exactly ``turns`` turns."""
    kept = np.array([lengths.get(i) == turns for i in evaluation.session_ids])
    if not kept.any():
        raise IncompleteError(f"the ranked list has no session of {turns} turns")
    names = ("session_ids", "categories", "target_ids")
    subsets = {name: members[kept] for name, members in evaluation.subsets.items()}
    parts: dict[str, Any] = {name: tuple(compress(getattr(evaluation, name), kept)) for name in names}
    return replace(evaluation, **parts, ranks=evaluation.ranks[kept], subsets=subsets)


def score_list(
    path: Path, name: str, dataset: Dataset, workspace: Workspace, partial: bool, trained_on: tuple[str, ...]
) -> tuple[Evaluation, dict[str, Any], int]:
    """Evaluate the ranked lists in ``path`` and keep the result under ``name``.

    Returns (evaluation, summary, sessions whose list does not name their target).
    """
    folder = RankedFolder.of(workspace, dataset, name)
    evaluation, unlisted = evaluate_ranked(path, dataset, partial)
    content = file_digest(path)
    facts = {"run": f"ranked-{content[:12]}", "model": name, "seed": None, "store": content}
    facts |= {"dataset": dataset.name, "extractor": f"of ranked list {name}", "gallery": "imported"}
    summary = evaluation.summary(**facts, contaminated_on=list(trained_on), identity=_identity(dataset), list=path.name)
    folder.save(evaluation, summary)
    return evaluation, summary, unlisted


def _identity(dataset: Dataset) -> dict[str, str]:
    """Return digests of what a score depends on besides the list: test sessions, galleries, and train pairs."""
    sessions = [s.model_dump(mode="json") for s in dataset.split("test")]
    galleries = [[g.category, sorted(g.images)] for g in dataset.galleries if g.split == "test"]
    pairs = sorted({(s.category, *pair) for s in dataset.split("train") for pair in s.pairs})
    return {"sessions": digest(sessions), "galleries": digest(galleries), "train_pairs": digest(pairs)}
