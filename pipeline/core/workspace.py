"""The output folder: ``<out>/stores``, ``<out>/runs`` and one extraction record per spec.

The record lets stage 2 find its store without loading the single-turn model, whose weights determine the fingerprint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cache import Store
from cache.catalogue import ENCODING
from cache.files import write_json
from manifests.errors import IncompleteError
from manifests.identity import changed_fields, digest
from manifests.load import portable
from manifests.schema import Dataset, RunSpec
from pipeline.composition.ready import fitting_sessions
from pipeline.composition.request import composer_request, is_joint
from pipeline.core.binding import StaleError, declared_digest, image_changes, load_binding, source_changes
from pipeline.core.image_files import DIGESTS

ASIDE = ".removed-"  # prefix of their names


@dataclass(frozen=True)
class FeatureRecord:
    """Stores of a spec, relative to ``<out>/stores``, and their source data (see ``pipeline.core.binding``).

    Stage 2 reads ``store``. A record of an earlier version has no binding; `extract` rewrites it.
    """

    spec: str  # name of the spec
    request: str  # digest of the spec's dataset and extractor tables
    backbone: str
    binding: str  # name of the binding: image id -> content key
    declared: str  # digest of the dataset's image entries
    sources: dict[str, tuple[str, list[int]]]  # model files: name -> (SHA-256, stat)
    composer: dict[str, Any] | None = None  # identity fields of the composer, after composing
    store: str = ""
    contaminated_on: tuple[str, ...] = ()
    given: str = ""  # spec file or shipped name that was extracted, to name it again; "" in earlier records
    card: dict[str, str] = field(default_factory=dict)  # license and source of the single-turn model
    gallery: str = ""  # source of candidates: "image", "caption" (replaces the image) or "imported" (external arrays)


_RECORD = TypeAdapter(FeatureRecord)


class Workspace:
    """The output folder of a project."""

    def __init__(self, out: Path):
        self.out = out
        self.stores = out / "stores"
        self.runs = out / "runs"
        self.records = out / "extracted"
        self.bindings = self.records / "bindings"
        self._checked: dict[Any, tuple[Dataset, dict[str, bytes]]] = {}  # bindings already checked in this process

    def note_path(self, spec: RunSpec) -> Path:
        """Return the record's path, one per spec, dataset and extractor, so that specs of one name do not collide."""
        return self.records / f"{spec.name}-{extraction_request(spec)[:8]}.json"

    def note(self, spec: RunSpec) -> FeatureRecord | None:
        """Return the record of this spec's extraction, or None if there is none yet."""
        try:
            values = json.loads(self.note_path(spec).read_text(encoding="utf-8"))
            FeatureRecord(**values)  # refuses the fields of another version
            return _RECORD.validate_python(values)
        except (FileNotFoundError, ValueError, TypeError):  # absent, damaged, or of another version: it is rewritten
            return None

    def write_note(self, spec: RunSpec, note: FeatureRecord) -> None:
        write_json(self.note_path(spec), asdict(note), ENCODING[1])

    def earlier_records(self, spec: RunSpec) -> list[Path]:
        """Return records of this spec name with another dataset, extractor or version; latest last."""
        found = [*self.records.glob(f"{spec.name}.json"), *self.records.glob(f"{spec.name}-????????.json")]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def extracted(self, spec: RunSpec) -> FeatureRecord:
        """Return the record of the spec's extraction. Raises IncompleteError, naming the command, if there is none."""
        note = self.note(spec)
        if note is not None:
            return note
        why = f"nothing is extracted for spec '{spec.name}' in {self.out}"
        if self.earlier_records(spec):
            why = f"the dataset or extractor of spec '{spec.name}' changed since it was extracted, or an earlier version did it"
        raise IncompleteError(f"{why}: run `{spec.command('extract')}`")

    def binding(self, spec: RunSpec, dataset: Dataset) -> dict[str, bytes]:
        """Return image id -> content key as recorded for ``spec``, checked against the present dataset.

        Raises StaleError if ids, files, captions, image bytes or model files have changed, naming the first ones.
        """
        note = self.extracted(spec)
        key = (self.note_path(spec), str(spec.composer), note.binding, note.declared, id(dataset))
        if key in self._checked:
            return self._checked[key][1]
        again = f"run `{spec.command('extract')}`"
        keys = load_binding(self.bindings, note.binding)
        if declared_digest(dataset) != note.declared:
            what = f"the image ids, files, captions or attributes of dataset '{dataset.name}'"
            raise StaleError(f"{what} are not those that were extracted for spec '{spec.name}': {again}")
        digests = self.stores / dataset.name / DIGESTS
        if note.gallery == "image" and (changes := image_changes(dataset, keys, digests)):
            raise StaleError(f"dataset '{dataset.name}': since the extraction {changes}: {again}")
        files = source_changes(note.sources, spec)
        if files:
            shown = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
            raise StaleError(f"model files changed since the extraction of spec '{spec.name}' ({shown}): {again}")
        self._checked[key] = dataset, keys  # the dataset is kept so that its id is not given again
        return keys

    def backbone(self, spec: RunSpec, dataset: Dataset) -> Store:
        """Return the extractor's store (image, text rows; joint model: query, target rows), bound to ``dataset``."""
        return Store.open(self.stores / self.extracted(spec).backbone).bound_to(self.binding(spec, dataset))

    def store(self, spec: RunSpec, dataset: Dataset) -> Store:
        """Return the store with query and target rows that stage 2 reads, bound to ``dataset``.

        Raises IncompleteError if it does not exist yet, StaleError if it was made from other data, naming what differs.
        """
        note, backbone = self.extracted(spec), self.backbone(spec, dataset)
        now = composer_identity(spec, dataset, backbone)
        composer, fit = f"the composer of spec '{spec.name}'", f"run `{spec.command('fit-composer')}`"
        if not note.store:
            raise IncompleteError(f"{composer} is not fitted yet: {fit}")
        if note.composer != now:
            changed = "; ".join(changed_fields(note.composer or {}, now or {}))
            raise StaleError(f"{composer} changed since its features were composed ({changed}): {fit}")
        return Store.open(self.stores / note.store).bound_to(backbone.catalogue())

    def write_composed(self, spec: RunSpec, dataset: Dataset, store: Path) -> None:
        """Record ``store`` as the store that stage 2 reads, with the identity of its composer."""
        note = self.extracted(spec)
        identity = composer_identity(spec, dataset, self.backbone(spec, dataset))
        self.write_note(spec, replace(note, store=str(store.relative_to(self.stores)), composer=identity))


def extraction_request(spec: RunSpec) -> str:
    """Return the digest of the spec's tables that determine the extraction; the project's own place does not count."""
    return digest([spec.dataset.model_dump(), portable(spec.extractor.model_dump())])


def composer_identity(spec: RunSpec, dataset: Dataset, backbone: Store) -> dict[str, Any] | None:
    """Return the identity fields of the composer of ``spec`` on this data; None for a joint model, which has none."""
    if is_joint(backbone):
        return None
    fields = composer_request(spec).fields(backbone, dataset, *fitting_sessions(spec, dataset))
    return json.loads(json.dumps(fields))


def removal_leftovers(out: Path) -> dict[str, int]:
    """Return the folders that killed ``runs rm`` and ``cache gc`` left in ``out``, with their bytes."""
    return {str(path): size_of(path) for path in sorted(out.glob(f"{ASIDE}*")) if path.is_dir()}


def remove_leftovers(out: Path, *, dry_run: bool) -> dict[str, int]:
    """Remove the ``removal_leftovers``; return them."""
    found = removal_leftovers(out)
    for path in () if dry_run else found:
        shutil.rmtree(path, ignore_errors=True)  # the removal that set it aside may still be running
    return found


def leftovers_text(found: Mapping[str, int], dry_run: bool) -> str:
    end = f"of an interrupted removal {'would be ' if dry_run else ''}removed"
    return "\n".join(f"debris {path} ({size:,} bytes) {end}" for path, size in found.items())


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
