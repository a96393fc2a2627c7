"""Where results live: ``<out>/stores``, ``<out>/runs`` and, per spec, the note of what was extracted for it.

The note lets stage 2 find its store without the single-turn model, whose weights decide the fingerprint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cache import Store
from manifests.errors import IncompleteError
from manifests.identity import changed_fields, digest
from manifests.schema import Dataset, RunSpec
from manifests.validation import split_validation
from pipeline.composition.request import composer_request
from pipeline.core.binding import SourceRecord, StaleError, declared_digest, image_changes, load_binding, write_json

DIGESTS = "image-digests.tsv"


@dataclass(frozen=True)
class FeatureRecord:
    """The stores of a spec, relative to ``<out>/stores``, and what they were made from (``pipeline.core.binding``).

    ``store`` is the one that stage 2 reads. A record of an earlier version has no binding: `extract` writes it anew.
    """

    spec: str  # its name
    request: str  # digest of the spec's dataset and extractor tables
    backbone: str
    binding: str  # name of the binding: image id -> content key
    declared: str  # digest of what the dataset said of its images
    sources: dict[str, Any]  # model files: name -> [SHA-256, stat]
    composer: dict[str, Any] | None = None  # identity fields of the composer, once composed
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
        self._checked: dict[Any, dict[str, bytes]] = {}  # bindings found right in this process

    def note_path(self, spec: RunSpec) -> Path:
        """A file per spec, dataset and extractor: two specs of one name do not overwrite each other's."""
        return self.out / "extracted" / f"{spec.name}-{extraction_request(spec)[:8]}.json"

    def note(self, spec: RunSpec) -> FeatureRecord | None:
        """The record of this spec's extraction, or None when there is none yet."""
        try:
            values = json.loads(self.note_path(spec).read_text(encoding="utf-8"))
            return FeatureRecord(**values | {"contaminated_on": tuple(values["contaminated_on"])})
        except FileNotFoundError:
            return None
        except (
            ValueError,
            KeyError,
            TypeError,
        ):  # torn, or of another version: extraction writes it anew, rows are kept
            return None

    def write_note(self, spec: RunSpec, note: FeatureRecord) -> None:
        write_json(self.note_path(spec), asdict(note))

    @property
    def bindings(self) -> Path:
        return self.out / "extracted" / "bindings"

    def earlier_records(self, spec: RunSpec) -> list[Path]:
        """Records of a spec of this name whose dataset or extractor was another, or of an earlier version; latest last."""
        folder = self.out / "extracted"
        found = [*folder.glob(f"{spec.name}.json"), *folder.glob(f"{spec.name}-????????.json")]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def extracted(self, spec: RunSpec) -> FeatureRecord:
        """The record of the spec's extraction. Raises IncompleteError naming the command to run when there is none."""
        note = self.note(spec)
        if note is not None:
            return note
        why = f"nothing is extracted for spec '{spec.name}' in {self.out}"
        if self.earlier_records(spec):
            why = f"the dataset or extractor of spec '{spec.name}' changed since it was extracted, or an earlier version did it"
        raise IncompleteError(f"{why}: run `extract {spec.asked}`")

    def binding(self, spec: RunSpec, dataset: Dataset) -> dict[str, bytes]:
        """Image id -> content key, as the extraction of ``spec`` read it, checked against the dataset as it is now.

        Raises StaleError when ids, files, captions, image bytes or model files are others now, naming the first ones.
        """
        note = self.extracted(spec)
        key = (note.binding, note.declared, id(dataset))
        if key in self._checked:
            return self._checked[key]
        again = f"run `extract {spec.asked}`"
        keys = load_binding(self.bindings, note.binding)
        if declared_digest(dataset) != note.declared:
            raise StaleError(
                f"the image ids, files, captions or attributes of dataset '{dataset.name}' are not those that were "
                f"extracted for spec '{spec.name}': {again}"
            )
        if note.gallery == "image":
            changes = image_changes(dataset, keys, self.stores / dataset.name / DIGESTS)
            if changes.text():
                raise StaleError(f"dataset '{dataset.name}': since the extraction {changes.text()}: {again}")
        files = SourceRecord(note.sources).changes(spec)
        if files:
            shown = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
            raise StaleError(f"model files changed since the extraction of spec '{spec.name}' ({shown}): {again}")
        self._checked[key] = keys
        return keys

    def backbone(self, spec: RunSpec, dataset: Dataset) -> Store:
        """The extractor's own store (image and text rows, or query and target rows of a joint model), bound to ``dataset``."""
        return Store.open(self.stores / self.extracted(spec).backbone).bound_to(self.binding(spec, dataset))

    def store(self, spec: RunSpec, dataset: Dataset) -> Store:
        """The store with query and target rows that stage 2 reads, bound to ``dataset``.

        Raises IncompleteError when it is not made yet, StaleError when it is of other data, naming what differs.
        """
        note, backbone = self.extracted(spec), self.backbone(spec, dataset)
        now = composer_identity(spec, dataset, backbone)
        if not note.store:
            raise IncompleteError(
                f"the composer of spec '{spec.name}' is not fitted yet: run `fit-composer {spec.asked}`"
            )
        if note.composer != now:
            changed = "; ".join(changed_fields(note.composer or {}, now or {}))
            raise StaleError(
                f"the composer of spec '{spec.name}' changed since its features were composed ({changed}): "
                f"run `fit-composer {spec.asked}`"
            )
        return Store.open(self.stores / note.store).bound_to(backbone.catalogue())

    def write_composed(self, spec: RunSpec, dataset: Dataset, store: Path) -> None:
        """Record ``store`` as the one that stage 2 reads, with the identity of the composer that made it."""
        note = self.extracted(spec)
        identity = composer_identity(spec, dataset, self.backbone(spec, dataset))
        self.write_note(spec, replace(note, store=str(store.relative_to(self.stores)), composer=identity))


def extraction_request(spec: RunSpec) -> str:
    """Digest of the spec's tables that decide what is extracted."""
    return digest([spec.dataset.model_dump(), spec.extractor.model_dump()])


def composer_identity(spec: RunSpec, dataset: Dataset, backbone: Store) -> dict[str, Any] | None:
    """Identity fields of the composer that ``spec`` asks for on this data; None for a joint model, which needs none."""
    if "query" in backbone.tables:
        return None
    request = composer_request(spec)
    assert request is not None
    fit, validation = split_validation(dataset.split("train"), spec.validation.fraction, spec.validation.seed)
    return json.loads(json.dumps(request.fields(backbone, dataset, fit, validation)))
