"""``results.h5`` (ranks) and ``summary.json`` of a run, written atomically, with a seal that every read checks."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache.files import replace_atomically, write_json
from cache.hdf5 import require_own_data
from cache.seal import RESULTS_SEAL, SealError, check_seal, write_seal
from manifests.errors import IncompleteError
from manifests.identity import changed_fields
from manifests.views import WHOLE, View
from pipeline.evaluation.evaluate import Evaluation

FORMAT = 1
KIND = "evaluation"
AGAIN = "evaluate the run again (`evaluate`, or `ablate` for a view)"
_TEXTS = ("session_id", "category", "target_id")


@dataclass(frozen=True)
class ResultFiles:
    """Files of one evaluation of a run, in the run's folder; in ``views/`` for other views and for clean splits."""

    run: Path
    folder: Path

    @classmethod
    def of(cls, run: Path, view: View = WHOLE, protocol: str = "") -> ResultFiles:
        """``protocol``: folder name of a clean split, or of a gallery without references; "" for the default."""
        name = "-".join(filter(None, (protocol, view.name)))
        return cls(run, run / "views" / name if name else run)

    @property
    def results(self) -> Path:
        return self.folder / "results.h5"

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    def weights(self) -> str:
        """Return the SHA-256 of the run's present weights from the sidecar file; "" if there is none."""
        try:
            return str(json.loads((self.run / "model.json").read_text(encoding="utf-8"))["sha256"])
        except (OSError, ValueError, KeyError):
            return ""

    def view(self) -> View:
        """Return the view of the summary; whole sessions if there is none."""
        return View.model_validate(load_summary(self.summary).get("view", {})) if self.summary.is_file() else WHOLE

    def load(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the summary if it exists and is not stale (see ``stale``)."""
        if not self.summary.is_file() or not self.results.is_file() or self.stale(identity):
            return None
        return load_summary(self.summary)

    def stale(self, identity: Mapping[str, Any]) -> list[str]:
        """Return a line ``field: old -> new`` per difference of the evaluation from ``identity`` and the run's weights.

        Empty if the evaluation is current or missing. Raises ResultsError if one of the files is damaged.
        """
        if not self.summary.is_file():
            return []
        _check(self.folder)
        summary = load_summary(self.summary)
        old = {**summary.get("identity", {"protocol": "of an earlier version"}), "weights": summary.get("weights")}
        return changed_fields(old, json.loads(json.dumps({**identity, "weights": self.weights()})))

    def save(self, evaluation: Evaluation, summary: dict[str, Any]) -> None:
        """Write both files and seal them. If the write is interrupted, an older seal no longer matches."""
        save_results(self.results, evaluation, self.run.name)
        write_json(self.summary, summary)
        write_seal(self.folder, KIND, _name(self.folder), [self.results.name, self.summary.name], RESULTS_SEAL)


class ResultsError(IncompleteError, ValueError):
    """A results file is missing, damaged or in a newer format."""


def _name(folder: Path) -> str:
    """Return ``<run id>``, or ``<run id>/<view>`` for a folder in ``views``."""
    return f"{folder.parent.parent.name}/{folder.name}" if folder.parent.name == "views" else folder.name


def _check(folder: Path, *files: str) -> None:
    """Check the seal of ``folder`` if it has one, only for ``files`` if given. Raises ResultsError."""
    try:
        check_seal(folder, KIND, _name(folder), AGAIN, RESULTS_SEAL, files or None)
    except SealError as error:
        raise ResultsError(str(error)) from None


def save_results(path: Path, evaluation: Evaluation, run: str = "") -> None:
    """Write ``evaluation`` to ``path`` (HDF5): datasets session_id, category, target_id [S] text, rank [S] int32,
    subset_member [subsets, S] bool; skipped sessions as JSON attributes. An older file is replaced atomically.
    """
    e, buffer = evaluation, io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        for name, values in zip(_TEXTS, (e.session_ids, e.categories, e.target_ids), strict=True):
            file.create_dataset(name, data=np.array(values, dtype=object), dtype=h5py.string_dtype())
        file.create_dataset("rank", data=e.ranks.astype(np.int32))
        file.create_dataset("subset_member", data=np.stack(list(e.subsets.values())))
        about = {"subsets": list(e.subsets), "averaging": e.averaging, "galleries": e.galleries, "skipped": e.skipped}
        file.create_dataset("about", data=json.dumps(about, ensure_ascii=False), dtype=h5py.string_dtype())
        file.attrs.update({"format": FORMAT, "run": run})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, buffer.getvalue())


def load_results(path: Path) -> Evaluation:
    """Read the evaluation in ``path``. Raises ResultsError if it is missing, damaged or in a newer format."""
    again = "evaluate the run again"
    if not path.is_file():
        raise ResultsError(f"{path}: no such file: {again}")
    _check(path.parent, path.name)
    try:
        with h5py.File(path, "r") as file:
            require_own_data(file)
            found = int(file.attrs["format"])
            if found > FORMAT:
                raise ResultsError(f"{path}: format {found}, this version reads up to {FORMAT}: update the program")
            texts = {name: tuple(file[name].asstr()[:]) for name in _TEXTS}
            rank, members = file["rank"][:].astype(np.int64), file["subset_member"][:]
            about = json.loads(file["about"].asstr()[()])
        lengths = {len(rank), members.shape[1], *(len(values) for values in texts.values())}
        if len(lengths) != 1:
            raise ValueError(f"columns of different lengths {sorted(lengths)}")
        return Evaluation(
            session_ids=texts["session_id"],
            categories=texts["category"],
            target_ids=texts["target_id"],
            ranks=rank,
            averaging=about["averaging"],
            subsets=dict(zip(about["subsets"], members, strict=True)),
            galleries=about["galleries"],
            skipped=about["skipped"],
        )
    except ResultsError:
        raise
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise ResultsError(f"{path}: damaged ({error}): {again}") from error


def load_summary(path: Path) -> dict[str, Any]:
    """Read the summary in ``path``. Raises ResultsError if it is missing or damaged."""
    if path.is_file():
        _check(path.parent, path.name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file: evaluate the run") from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: damaged ({error}): evaluate the run again") from error
    if not isinstance(values, dict) or "metrics" not in values:
        raise ResultsError(f"{path}: holds no metrics: evaluate the run again")
    return values
