"""A study: questions drawn at random, and one SQLite file (WAL) with them and every answer immediately."""

from __future__ import annotations

import errno
import json
import random
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache.files import replacing
from manifests.errors import FashionNTMError, IncompleteError, advice, disk_problem
from pipeline.views.retrieval.testbed import TestBed
from pipeline.views.retrieval.trained import Trained

MOST_MODELS = 4


class StudyError(FashionNTMError, ValueError):
    """A study without valid questions, or an answer that does not match it."""


@dataclass(frozen=True)
class Question:
    """``options``: two or more pairs of model labels with equal results, and their images, best first."""

    number: int
    session: str
    options: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

    def shuffled(self, seed: int, participant: str) -> list[int]:
        """Return the option indices in this participant's order, which is deterministic."""
        order = list(range(len(self.options)))
        random.Random(f"{seed} {participant} {self.number}").shuffle(order)
        return order


def draw_questions(
    bed: TestBed, models: Sequence[Trained], count: int, k: int, seed: int
) -> tuple[list[Question], int]:
    """Draw ``count`` questions in random order from sessions where the models' top ``k`` images differ; also return
    the number of such test sessions.

    Raises StudyError for a single model, too many models, or no session where they differ.
    """
    if not 2 <= len(models) <= MOST_MODELS:
        raise StudyError(f"a study compares 2 to {MOST_MODELS} models, not {len(models)}: name them with --model")
    tops = {m.label: bed.top(bed.finals(m), k) for m in models}
    found = []
    for number in range(len(bed.sessions)):
        groups: dict[tuple[str, ...], list[str]] = {}
        for label, top in tops.items():
            groups.setdefault(bed.images(number, top[number]), []).append(label)
        if len(groups) > 1:
            found.append((number, tuple((tuple(labels), images) for images, labels in groups.items())))
    if not found:
        raise StudyError(f"the models retrieve the same top {k} for all sessions: there is nothing to choose between")
    drawn = random.Random(f"study {seed}").sample(found, min(count, len(found)))
    questions = [Question(n, bed.sessions[place].id, options) for n, (place, options) in enumerate(drawn)]
    return questions, len(found)


FORMAT = 1
SMALL = 1 << 16  # free bytes below which an I/O error of SQLite is one of a full disk
NAME = 60  # longest participant name in characters
SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE question (number INTEGER PRIMARY KEY, session TEXT NOT NULL, options TEXT NOT NULL);
CREATE TABLE participant (name TEXT PRIMARY KEY, since TEXT NOT NULL);
CREATE TABLE answer (
  participant TEXT NOT NULL REFERENCES participant, question INTEGER NOT NULL REFERENCES question,
  option INTEGER,  -- place among the question's options; NULL: no preference
  shown TEXT NOT NULL, seconds REAL, at TEXT NOT NULL, PRIMARY KEY (participant, question));
"""


class StudyDiskError(StudyError):
    """The study's file cannot be read or written: full or read-only disk, damage."""

    status = 507


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Convert an error of SQLite to a StudyDiskError with path, reason and next step."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except (sqlite3.DatabaseError, sqlite3.OperationalError) as error:
        name = getattr(error, "sqlite_errorname", "")
        full = name == "SQLITE_FULL" or shutil.disk_usage(path.parent).free < SMALL
        number = errno.ENOSPC if full else errno.EROFS if name.startswith("SQLITE_READONLY") else errno.EIO
        cause = OSError(number, str(error), str(path))
        what = f"{disk_problem(cause)}; answers that were acknowledged are kept"
        raise StudyDiskError(f"cannot use the study {what}; {advice(cause, 'try again')}") from error


class StudyFile:
    """One study. Each call opens its own connection, so any number of threads and processes may share the file."""

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise IncompleteError(f"{path}: no such study; `study SPEC` makes one")
        try:
            with self._open() as db:
                self.about: dict[str, Any] = {k: json.loads(v) for k, v in db.execute("SELECT key, value FROM about")}
                rows = db.execute("SELECT number, session, options FROM question ORDER BY number").fetchall()
            questions = [Question(n, s, tuple((tuple(a), tuple(b)) for a, b in json.loads(o))) for n, s, o in rows]
        except StudyDiskError as error:
            if isinstance(error.__cause__, sqlite3.OperationalError) and "no such table" not in str(error):
                raise
            raise StudyError(f"{path}: not a study ({error.__cause__}); name another file with --file") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise StudyError(f"{path}: damaged, not a study ({error}); name another file with --file") from None
        if self.about.get("format") != FORMAT:
            raise StudyError(f"{path}: study format {self.about.get('format')!r}, this program reads {FORMAT}")
        models = self.about.get("models")
        models = models if isinstance(models, list) else [None]
        asked = {label for question in questions for labels, _ in question.options for label in labels}
        labeled = all(isinstance(m, dict) and {"label", "title"} <= m.keys() for m in models)
        if not labeled or not asked <= {m["label"] for m in models} or not {"seed", "spec", "k"} <= self.about.keys():
            what = "damaged, it lacks its models, seed, spec or list length"
            raise StudyError(f"{path}: {what}; name another file with --file")
        self.questions = questions

    @classmethod
    def create(cls, path: Path, about: dict[str, Any], questions: Sequence[Question]) -> StudyFile:
        """Create a study; it is written under a temporary name first, so that an interrupted call leaves no file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with _naming(path), replacing(path) as part, closing(sqlite3.connect(part)) as db:
            db.executescript(SCHEMA)
            values = [(k, json.dumps(v)) for k, v in {"format": FORMAT, **about}.items()]
            db.executemany("INSERT INTO about VALUES (?, ?)", values)
            rows = [(q.number, q.session, json.dumps(q.options)) for q in questions]
            db.executemany("INSERT INTO question VALUES (?, ?, ?)", rows)
            db.commit()
        return cls(path)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with _naming(self.path), closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")  # an acknowledged answer survives a power failure
            db.execute("PRAGMA foreign_keys=ON")
            yield db

    def join(self, name: object) -> str:
        """Register or resume a participant; return the stored name. Raises StudyError for an invalid name."""
        if not isinstance(name, str):
            raise StudyError("a name is a text")
        kept = " ".join("".join(c if c.isprintable() else " " for c in name).split())
        if not kept or len(kept) > NAME:
            raise StudyError(f"a name has 1 to {NAME} characters: write a name or a code")
        if self.about.get("codes") and kept not in self.about["codes"]:
            raise StudyError("this study has a list of codes, and this one is not on it: check the spelling")
        with self._open() as db:
            db.execute("INSERT OR IGNORE INTO participant VALUES (?, ?)", (kept, _now()))
        return kept

    def order(self, participant: str) -> list[int]:
        """Return the question numbers in this participant's order."""
        numbers = [q.number for q in self.questions]
        random.Random(f"{self.about['seed']} {participant}").shuffle(numbers)
        return numbers

    def answered(self, participant: str) -> dict[int, int | None]:
        """Return question number -> option, of one participant."""
        question = "SELECT question, option FROM answer WHERE participant = ?"
        with self._open() as db:
            return dict(db.execute(question, (participant,)).fetchall())

    def answer(self, participant: str, number: object, shown: object, seconds: float | None) -> None:
        """Store an answer: the displayed position of the chosen option, or None for no preference. A second answer to
        the same question replaces the first. Raises StudyError for an unknown question, position or participant.
        """
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self.questions):
            raise StudyError(f"there is no question {number!r}")
        order = self.questions[number].shuffled(self.about["seed"], participant)
        if shown is not None and (isinstance(shown, bool) or not isinstance(shown, int) or not 0 <= shown < len(order)):
            raise StudyError(f"question {number} has no option {shown!r}")
        row = (participant, number, None if shown is None else order[shown], json.dumps(order), seconds, _now())
        with self._open() as db:
            try:
                db.execute("INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                raise StudyError(f"{participant!r} takes no part in this study: join first") from None

    def answers(self) -> list[tuple[str, int, int | None]]:
        """Return (participant, question number, option; None: no preference) of every answer."""
        question = "SELECT participant, question, option FROM answer ORDER BY participant, question"
        with self._open() as db:
            return db.execute(question).fetchall()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
