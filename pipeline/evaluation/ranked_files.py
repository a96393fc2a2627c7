"""Ranked lists as files: TREC run, JSON lines, and the server formats of CIRR and CIRCO.

    TREC    session Q0 image rank score tag       one line per candidate; ids with blanks are percent-encoded
    JSONL   {"session": id, "images": [ids], "scores": [...]}     scores are optional
    CIRR    {"version": "rc2", "metric": "recall", session: [ids], ...}
    CIRCO   {session: [ids], ...}

A list is ranked by its scores if it has any (as trec_eval does; the rank column is not read), else by position.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from cache.files import replace_atomically
from manifests.errors import Problems, nearest
from manifests.schema import Session
from manifests.text import JsonError, brief, decode_text, parse_json, read_bounded
from pipeline.evaluation.evaluate import Candidates
from pipeline.evaluation.ranking import SCORES_HELD, distinct, unit_rows

FORMATS = ("trec", "jsonl", "cirr", "circo", "beir")
FILES = {"trec": "run.trec", "jsonl": "run.jsonl", "cirr": "cirr.json", "circo": "circo.json", "beir": "run.trec"}
_CIRR = {"version": "rc2", "metric": "recall"}
_KEPT = "!\"#$&'()*+,/:;<=>?@[\\]^`{|}~"  # all printable ASCII but % and the blank


@dataclass(frozen=True)
class Ranked:
    """Candidates, best first. ``scores``: higher is better; None: by position. ``place``: of the list in its file."""

    session: str
    images: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    place: str = ""


def write_ranked(path: Path, form: str, lists: Iterable[Ranked], tag: str) -> None:
    """Write ranked lists in ``form`` to ``path``. The server formats keep no scores."""
    if form in ("trec", "beir"):
        text = "".join(_trec(ranked, tag) for ranked in lists)
    elif form == "jsonl":
        text = "".join(_json_line(ranked) for ranked in lists)
    else:
        made: dict[str, Any] = dict(_CIRR) if form == "cirr" else {}
        number = int if form == "circo" else str
        for r in lists:
            made[r.session] = [number(i) if i.isdecimal() and str(int(i)) == i else i for i in r.images]
        text = json.dumps(made, ensure_ascii=False) + "\n"
    replace_atomically(path, text.encode())


def _trec(ranked: Ranked, tag: str) -> str:
    scores = ranked.scores or tuple(-float(n) for n in range(len(ranked.images)))
    name = coded(ranked.session)
    rows = enumerate(zip(map(coded, ranked.images), scores, strict=True), start=1)
    return "".join(f"{name} Q0 {image} {n} {score:.9g} {tag}\n" for n, (image, score) in rows)


def _json_line(ranked: Ranked) -> str:
    scores = {} if ranked.scores is None else {"scores": [float(f"{s:.9g}") for s in ranked.scores]}
    return json.dumps({"session": ranked.session, "images": ranked.images, **scores}, ensure_ascii=False) + "\n"


def coded(name: str) -> str:
    """Return an id without blanks, as a word of a TREC line."""
    return quote(name, safe=_KEPT)


def read_ranked(path: Path, problems: Problems) -> list[Ranked]:
    """Read ranked lists of any of the formats, recognized by their content; malformed parts go to ``problems``."""
    try:
        text = decode_text(read_bounded(path))
    except (OSError, UnicodeDecodeError) as error:
        problems.add("", f"cannot be read: {error}", "give a TREC run, JSON lines, or a server file", file=path)
        return []
    first = text.lstrip()[:1]
    if not first:
        problems.add("", "an empty file", "it has no ranked list", file=path)
        return []
    if first != "{":
        return _read_trec(text, path, problems)
    try:
        one = parse_json(text.lstrip().partition("\n")[0])
    except JsonError:
        one = None
    read = _read_jsonl if isinstance(one, dict) and "session" in one else _read_json
    return read(text, path, problems)


def _read_trec(text: str, path: Path, problems: Problems) -> list[Ranked]:
    lists: dict[str, tuple[int, list[str], list[float]]] = {}  # session -> first line, images, scores
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.split()
        if not words:
            continue
        score, place = _number(words[4]) if len(words) == 6 else None, f"line {number}"
        if score is None:
            problems.add(place, f"found {brief(line)}", "expected session Q0 image rank score tag", file=path)
            continue
        _, images, scores = lists.setdefault(unquote(words[0]), (number, [], []))
        images.append(unquote(words[2]))
        scores.append(score)
    return [Ranked(s, tuple(i), tuple(scores), f"line {first}") for s, (first, i, scores) in lists.items()]


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and not isinstance(text, bool) else None


def _read_jsonl(text: str, path: Path, problems: Problems) -> list[Ranked]:
    made = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            record = parse_json(line)
        except JsonError as error:
            problems.add(place, error.reason, file=path)
            continue
        values: dict[str, Any] = record if isinstance(record, dict) else {}
        images, scores, session = values.get("images"), values.get("scores"), values.get("session")
        numbers = [_number(s) for s in scores] if isinstance(scores, list) else None
        if not (isinstance(images, list) and isinstance(session, str)) or (
            scores is not None and (numbers is None or None in numbers or len(numbers) != len(images))
        ):
            what = f"found {brief(line)}"
            problems.add(place, what, "expected session, images, and as many finite scores or none", file=path)
            continue
        kept = None if numbers is None else tuple(n for n in numbers if n is not None)
        made.append(Ranked(session, tuple(map(str, images)), kept, place))
    return made


def _read_json(text: str, path: Path, problems: Problems) -> list[Ranked]:
    try:
        values = parse_json(text, unique=True)
    except JsonError as error:
        problems.add(error.place, error.reason, "give a TREC run, JSON lines, or a server file", file=path)
        return []
    made = []
    for session, images in values.items():
        if session in _CIRR and isinstance(images, str):
            continue
        if isinstance(images, list) and all(isinstance(i, str | int) and not isinstance(i, bool) for i in images):
            made.append(Ranked(session, tuple(map(str, images)), None, f"key {session!r}"))
        else:
            problems.add(f"key {session!r}", f"found {brief(images)}", "expected a list of image ids", file=path)
    return made


def check_lists(lists: Iterable[Ranked], known: Collection[str], kind: str, problems: Problems) -> dict[str, Ranked]:
    """Return the lists by query; unknown and repeated queries and images go to ``problems``. ``kind``: of a query."""
    found: dict[str, Ranked] = {}
    for one in lists:
        name = f"{kind} {one.session!r}"
        if one.session not in known:
            problems.add(one.place, f"no {name}", nearest(one.session, known))
            continue
        if (first := found.setdefault(one.session, one)) is not one:
            problems.add(one.place, f"{name} is listed before", f"at {first.place}")
        if len(set(one.images)) < len(one.images):
            twice = next(i for n, i in enumerate(one.images) if i in one.images[:n])
            problems.add(one.place, f"{name}: image {twice!r} is listed twice", "keep its best rank")
    return found


def ranked_lists(
    queries: np.ndarray,
    sessions: Sequence[Session],
    galleries: Mapping[str, Candidates],
    top: int,
    score: Callable[[Sequence[int], np.ndarray], np.ndarray] | None = None,
) -> Iterator[tuple[Ranked, str]]:
    """Yield (list of the ``top`` candidates, target) of each session that has its target; args of ``evaluate``."""
    for category, gallery in galleries.items():
        mine = [n for n, s in enumerate(sessions) if s.category == category and s.target in gallery.index]
        targets = np.array([gallery.index[sessions[n].target] for n in mine], dtype=np.int64)
        if score is None:
            found = cosine_orders(queries[mine], gallery.features, targets, top)
        else:
            found = score_orders(score(mine, gallery.features), gallery.features, targets, top)
        for n, (rows, scores) in zip(mine, found, strict=True):
            images = tuple(gallery.images[row] for row in rows)
            yield Ranked(sessions[n].id, images, tuple(scores.tolist())), sessions[n].target


def cosine_orders(
    queries: np.ndarray, candidates: np.ndarray, target_index: np.ndarray, top: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each query (candidate rows int64 [K], cosines float32 [K]), best first, K = min(top, G).

    Args and rounding are those of ``ranking.ranks``: the same blocks give the same cosines, and so the same ties.
    """
    unique, inverse, _ = distinct(unit_rows(np.asarray(candidates)))
    targets = np.asarray(target_index, dtype=np.int64)
    step = max(1, SCORES_HELD // max(1, len(unique)))
    for start in range(0, len(queries), step):
        scores = unit_rows(np.asarray(queries)[start : start + step]) @ unique.T
        for row, target in zip(scores, targets[start : start + step], strict=True):
            yield _best(row[inverse], int(target), top)


def score_orders(
    scores: np.ndarray, candidates: np.ndarray, target_index: np.ndarray, top: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield as ``cosine_orders``, for given scores [S, G]; equal candidates share the score of the first of them."""
    _, inverse, _ = distinct(np.asarray(candidates, dtype=np.float32))
    first = np.unique(inverse, return_index=True)[1]
    for row, target in zip(np.asarray(scores)[:, first], target_index, strict=True):
        yield _best(row[inverse], int(target), top)


def _best(scores: np.ndarray, target: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    last = np.zeros(len(scores), dtype=bool)
    last[target] = True
    order = np.lexsort((np.arange(len(scores)), last, -scores))[:top]
    return order, scores[order]
