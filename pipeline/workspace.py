"""Where results live: ``<out>/stores``, ``<out>/runs`` and, per spec, the note of what was extracted for it.

The note lets stage 2 find its store without the single-turn model, whose weights decide the fingerprint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cache import Store
from manifests.errors import IncompleteError
from manifests.identity import digest
from manifests.schema import RunSpec


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
