"""Where results live: ``<out>/stores``, ``<out>/runs`` and, per spec, the note of what was extracted for it.

The note lets stage 2 find its store without the single-turn model, whose weights decide the fingerprint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache import Store
from cache.files import replace_atomically
from manifests.errors import IncompleteError
from manifests.identity import digest
from manifests.schema import RunSpec

if TYPE_CHECKING:
    from pipeline.training.backends import BackendChoice


@dataclass(frozen=True)
class Pinned:
    """How training steps of one shape are computed: others could round sums differently, and a run should repeat."""

    backend: str = "auto"
    threads: int | None = None  # on a CPU; None: not measured

    @property
    def candidates(self) -> tuple[int, ...]:
        """The numbers of threads to choose among: the one pinned, or those of the machine."""
        from pipeline.training.threads import candidates

        return candidates() if self.threads is None else (self.threads,)


@dataclass(frozen=True)
class Extracted:
    """What stage 1 made for a spec: store folders relative to ``<out>/stores``; ``store`` is the one stage 2 reads."""

    request: str  # digest of the spec's dataset and extractor tables
    backbone: str
    composer: str = ""  # digest of the spec's composer and validation tables, once composed
    store: str = ""
    contaminated_on: tuple[str, ...] = ()
    gallery: str = (
        ""  # what candidates are: "image", "caption" (standing in for it) or "imported" (arrays made elsewhere)
    )


class Workspace:
    """The output folder of a project."""

    def __init__(self, out: Path):
        self.out = out
        self.stores = out / "stores"
        self.runs = out / "runs"

    def pinned(self, shape: str) -> Pinned:
        """What training steps of this shape were pinned to here (``pin``)."""
        try:
            found = json.loads(self._pin_file(shape).read_text(encoding="utf-8"))
            return Pinned(found.get("backend", "auto"), found.get("threads"))
        except (OSError, ValueError, AttributeError):
            return Pinned()

    def pin(self, shape: str, choice: BackendChoice, backend: bool = True) -> None:
        """Remember what was measured for every later run of this shape; ``backend`` False: the threads alone.

        A file a shape, so that workers that measure different shapes at once do not overwrite each other's.
        """
        measured: dict[str, Any] = {}
        if backend and choice.milliseconds:
            measured |= {"backend": choice.backend, "backend_milliseconds": choice.milliseconds}
        if choice.threads is not None and choice.threads.milliseconds:
            measured |= {"threads": choice.threads.threads, "threads_milliseconds": choice.threads.milliseconds}
        if not measured:
            return
        path = self._pin_file(shape)
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            known = {"shape": shape}
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, (json.dumps(known | measured, indent=2) + "\n").encode())

    def _pin_file(self, shape: str) -> Path:
        return self.out / "steps" / f"{digest(shape)[:12]}.json"

    def note_path(self, spec: RunSpec) -> Path:
        return self.out / "extracted" / f"{spec.name}.json"

    def note(self, spec: RunSpec) -> Extracted | None:
        """The note of this spec, or None when nothing was extracted for it yet."""
        try:
            values = json.loads(self.note_path(spec).read_text(encoding="utf-8"))
            return Extracted(**values | {"contaminated_on": tuple(values["contaminated_on"])})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):  # torn or foreign: extraction writes it anew, rows are kept
            return None

    def write_note(self, spec: RunSpec, note: Extracted) -> None:
        path = self.note_path(spec)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)

    def extracted(self, spec: RunSpec) -> Extracted:
        """The note, checked against the spec as it is now. Raises IncompleteError naming the command to run."""
        note = self.note(spec)
        if note is None:
            raise IncompleteError(
                f"nothing is extracted for spec '{spec.name}' in {self.out}: run `extract {spec.asked}`"
            )
        if note.request != extraction_request(spec):
            raise IncompleteError(
                f"the dataset or extractor of spec '{spec.name}' changed since it was extracted: run `extract {spec.asked}`"
            )
        return note

    def backbone(self, spec: RunSpec) -> Store:
        """The extractor's own store (image and text rows, or query and target rows of a joint model)."""
        return Store.open(self.stores / self.extracted(spec).backbone)

    def store(self, spec: RunSpec) -> Store:
        """The store with query and target rows that stage 2 reads. Raises IncompleteError when it is not made yet."""
        note = self.extracted(spec)
        if not note.store or note.composer != composer_digest(spec):
            why = "changed since its features were composed" if note.store else "is not fitted yet"
            raise IncompleteError(f"the composer of spec '{spec.name}' {why}: run `fit-composer {spec.asked}`")
        return Store.open(self.stores / note.store)

    def write_composed(self, spec: RunSpec, store: Path) -> None:
        note = self.extracted(spec)
        path = str(store.relative_to(self.stores))
        self.write_note(spec, replace(note, store=path, composer=composer_digest(spec)))


def extraction_request(spec: RunSpec) -> str:
    """Digest of the spec's tables that decide what is extracted."""
    return digest([spec.dataset.model_dump(), spec.extractor.model_dump()])


def composer_digest(spec: RunSpec) -> str:
    """Digest of the spec's tables that decide the composer: its own, and which sessions are held out from it."""
    return digest([spec.composer.model_dump() if spec.composer else None, spec.validation.model_dump()])
