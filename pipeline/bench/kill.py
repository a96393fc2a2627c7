"""Crash test of the store on this machine and disk: writers are killed by SIGKILL, and every row is checked.

Each writer is a forked process that resumes one small job: shards of two tables, half of them committed directly and
half written as a worker writes them and then adopted, and the binding of the catalog before and after. It is killed

- at a step: just before or just after its n-th call of rename, write, fsync or any built-in function
  (``sys.setprofile`` sees each of these calls, in every thread of the writer);
- or from outside, after a random time.

After each kill the store is reopened, every committed row is compared with its expected value, and every row whose
commit had returned must exist. A finished store must equal, file by file, an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache import Store, StoreError, StoreNotFoundError, StoreWriter, verify, write_shard
from cache.layout import MANIFEST, is_temporary, shard_number
from cache.manifest import load_manifest
from manifests.errors import FashionNTMError

TABLES, SHARDS, ROWS, DIM = ("image", "query"), 12, 96, 64
_ABOUT: dict[str, Any] = {"dataset": "kill", "extractor": "sine", "fields": {"dim": DIM}}
_CALLS = ("replace", "write", "fsync", "lseek", "unlink", "")  # "": any built-in function


@dataclass
class Score:
    """Result of ``kill_writers``. ``windows``: what the killed writers were doing, inferred from the files they left."""

    kills: int = 0
    unreadable: int = 0
    lost_rows: int = 0
    wrong_rows: int = 0
    damaged: int = 0
    redone_shards: int = 0
    most_redone: int = 0
    finished: int = 0
    equal: int = 0
    seconds: float = 0.0
    windows: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        bad = self.unreadable + self.lost_rows + self.wrong_rows + self.damaged
        return not bad and self.most_redone <= 1 and 0 < self.finished == self.equal


def run(kills: int = 50, seed: int = 0, folder: str = "", *, progress: Callable[[str], object] = str) -> dict[str, Any]:
    """Kill ``kills`` writers at chosen steps and random moments, and return the score.

    folder: location of the temporary stores; default: the system's. ``passed`` is False if a row was lost or wrong, or
    if a store was unreadable or differs at the end; `bench` then exits with code 1.
    """
    score = kill_writers(kills, seed, folder or None, progress)
    return {**vars(score), "passed": score.passed}


def render(figures: dict[str, Any]) -> str:
    f = figures
    lines = [
        f"{f['kills']} writers killed in {f['seconds']:.0f} s: {f['unreadable']} stores unreadable, "
        f"{f['lost_rows']} committed rows lost, {f['wrong_rows']} rows wrong, {f['damaged']} findings of verify",
        f"shards redone: {f['redone_shards']}, at most {f['most_redone']} after one kill",
        f"finished stores: {f['finished']}, equal to the uninterrupted one in every byte: {f['equal']}",
        "killed while: " + ", ".join(f"{what} {n}" for what, n in sorted(f["windows"].items())),
        *f["problems"][:10],
        "passed" if f["passed"] else "FAILED",
    ]
    return "\n".join(lines)


def keys_of(table: str) -> np.ndarray:
    """Return the job's keys of ``table``, uint8 [SHARDS * ROWS, 16]."""
    digests = (hashlib.sha256(f"{table} {n}".encode()).digest()[:16] for n in range(SHARDS * ROWS))
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)


def features_of(keys: np.ndarray) -> np.ndarray:
    """Return float16 [n, DIM], derived from the keys, so that any row can be checked alone."""
    return np.sin(keys.view(np.uint64)[:, :1] % np.uint64(9973) + np.arange(DIM)).astype(np.float16)


def work(path: Path, say: Callable[[str], object] = str) -> None:
    """Write the missing shards in one session. ``say`` receives "+ <table> <n>" before shard n and "= ..." after it."""
    with StoreWriter(path, **_ABOUT, execution={"pid": os.getpid()}) as writer:
        keys = {table: keys_of(table) for table in TABLES}
        if writer.missing("image", keys["image"][-1:]).any():
            writer.bind({"first": keys["image"][0].tobytes()})
        for n in range(SHARDS):
            for table in TABLES:
                part = keys[table][n * ROWS : (n + 1) * ROWS]
                if not writer.missing(table, part).any():
                    continue
                say(f"+ {table} {n}")
                if n % 2:
                    writer.adopt(write_shard(path, table, part, features_of(part), number=writer.next_number(table)))
                else:
                    writer.commit(table, part, features_of(part))
                say(f"= {table} {n}")
        writer.bind({f"image {n}": key.tobytes() for n, key in enumerate(keys["image"])})


def kill_writers(n: int, seed: int, folder: str | Path | None, progress: Callable[[str], object] = str) -> Score:
    """Kill ``n`` writers and return the score.

    Raises FashionNTMError if processes cannot be forked (Windows), or when kills do not arrive.
    """
    if not hasattr(os, "fork"):
        raise FashionNTMError("this system cannot fork processes: run `bench kill` on Linux or macOS")
    score, rng, began = Score(), random.Random(seed), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        whole, path, tries = Path(name) / "whole", Path(name) / "store", 0
        calls, seconds = _uninterrupted(whole)
        expected = _identity(whole)
        rows, started = 0, Counter[str]()
        while score.kills < n:
            tries += 1
            if tries > 5 * n + 100:
                raise FashionNTMError(
                    f"only {score.kills} of {tries - 1} writers could be killed: the machine is too slow"
                )
            code, events = _run(path, _plan(rng, calls, seconds))
            killed, before = code == -signal.SIGKILL, score.redone_shards
            if not killed and code:
                score.problems.append(f"writer {tries} ended with {code}: it should have resumed")
                score.unreadable += 1
            if killed:
                score.kills += 1
                score.windows[_window(path)] += 1
            for event in events:
                if event[0] == "+":
                    score.redone_shards += started[event[2:]] > 0
                    started[event[2:]] += 1
            score.most_redone = max(score.most_redone, score.redone_shards - before)
            acknowledged = ROWS * len({e[2:] for e in events if e[0] == "="}) + rows
            rows = _check(path, acknowledged, score)
            if code == 0:
                _finish(path, expected, score)
                rows, started = 0, Counter[str]()
            progress(f"{score.kills} of {n} kills")
        if path.exists() and _run(path, None)[0] == 0:  # the last one is finished too
            _finish(path, expected, score)
    score.seconds = time.perf_counter() - began
    return score


@dataclass(frozen=True)
class _Kill:
    """A kill from outside ``after_seconds``, or at the ``nth`` call of ``name``, before it or ``after`` it."""

    name: str = ""
    nth: int = 0
    after: bool = False
    after_seconds: float = 0.0


def _plan(rng: random.Random, calls: Counter[str], seconds: float) -> _Kill:
    if rng.random() < 0.25:
        return _Kill(after_seconds=rng.uniform(0, seconds / 3))
    name = rng.choice(_CALLS)
    most = max(1, calls[name] // 4)  # early, so that a store takes several kills
    return _Kill(name, rng.randint(1, most), rng.random() < 0.5)


def _run(path: Path, kill: _Kill | None) -> tuple[int, list[str]]:
    """Run one writer process on ``path``; return its exit code (-9: killed) and its messages."""

    def write(pipe: int) -> None:
        with open(os.open(os.devnull, os.O_WRONLY), "w") as quiet:
            os.dup2(quiet.fileno(), 2)
        if kill and kill.nth:
            _watch(kill)
        os.write(pipe, b"ready\n")
        work(path, lambda event: os.write(pipe, f"{event}\n".encode()))

    code, said = _forked(write, kill.after_seconds if kill and not kill.nth else None)
    return code, [line for line in said.decode().split("\n")[:-1] if line[:1] in "+="]


def _forked(child: Callable[[int], None], kill_after: float | None = None) -> tuple[int, bytes]:
    """Fork ``child`` with a pipe, kill it ``kill_after`` seconds after its first line; return exit code and output."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            child(writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.readline()
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        said += pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def _watch(kill: _Kill, calls: Counter[str] | None = None) -> None:
    """Count this process's calls of built-in functions in all threads, and kill it at the call that ``kill`` names."""
    calls = Counter() if calls is None else calls

    def profile(frame: object, event: str, argument: Any) -> None:
        if event in ("c_call", "c_return"):
            name = getattr(argument, "__name__", "")
            if event == "c_call":
                calls[name] += 1
                calls[""] += 1
            mine = kill.name in ("", name) and event == ("c_return" if kill.after else "c_call")
            if mine and calls[kill.name] == kill.nth:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(profile)
    sys.setprofile(profile)


def _uninterrupted(path: Path) -> tuple[Counter[str], float]:
    """Run the job without a kill in a separate process; return its number of calls by name, and its seconds."""

    def write(pipe: int) -> None:
        began, calls = time.perf_counter(), Counter[str]()
        _watch(_Kill("", -1), calls)
        work(path)
        sys.setprofile(None)
        os.write(pipe, json.dumps([{n: calls[n] for n in _CALLS}, time.perf_counter() - began]).encode())

    code, said = _forked(write)
    if code:
        raise FashionNTMError(f"the job fails without any kill: is {path.parent} writable and has it room?")
    calls, seconds = json.loads(said)
    return Counter(calls), seconds


def _check(path: Path, acknowledged: int, score: Score) -> int:
    """Compare every committed row; return their number."""
    try:
        store = Store.open(path, verify="always")
        rows = 0
        for table in store.tables:
            keys, found = store.keys(table), store.load(table)
            wrong = (keys != keys_of(table)[: len(keys)]).any(axis=1) | (found != features_of(keys)).any(axis=1)
            score.wrong_rows += int(wrong.sum())
            rows += len(keys)
        store.catalogue()
        score.damaged += sum(f.level == "error" for f in verify(path))
    except StoreNotFoundError:
        rows = 0
    except StoreError as error:
        score.unreadable += 1
        score.problems.append(str(error))
        return acknowledged
    score.lost_rows += max(0, acknowledged - rows)
    return rows


def _finish(path: Path, expected: dict[str, str], score: Score) -> None:
    """Compare a finished store with the uninterrupted one, and remove it."""
    _check(path, len(TABLES) * SHARDS * ROWS, score)
    score.finished += 1
    score.equal += _identity(path) == expected
    score.damaged += sum(f.code != "place" for f in verify(path))  # no temporary file, nothing set aside
    shutil.rmtree(path)


def _window(path: Path) -> str:
    """Return the activity of the killed writer, inferred from the files it left."""
    names = os.listdir(path) if path.is_dir() else []
    left = [name for name in names if is_temporary(name)]
    if any(name.startswith(f".{MANIFEST}.") for name in left):
        return "replacing the manifest"
    try:
        listed = {s.file for s in load_manifest(path).shards}
    except StoreNotFoundError:
        return "making the store"
    for name in names:
        try:
            shard_number(name)
        except ValueError:
            continue
        if name not in listed:
            return "renamed, not in the manifest"
    sizes = [(path / name).stat().st_size for name in left if name.startswith(tuple(f".{t}-" for t in TABLES))]
    if sizes:
        whole = ROWS * (2 * DIM + 16)
        return "closed, not renamed" if min(sizes) > whole else "writing a shard"
    return "replacing the catalog" if left else "between two commits"


def _identity(path: Path) -> dict[str, str]:
    """Return digests of every shard, of the catalog, and of the manifest without its log of sessions."""
    manifest = {k: v for k, v in load_manifest(path).as_dict().items() if k != "execution"}
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.glob("*.h5*")}
    return {**found, MANIFEST: hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()}
