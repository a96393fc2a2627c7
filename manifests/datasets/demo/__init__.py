"""Embedded demo: a rendered catalog of garments, and sessions whose target depends on early feedback.

It ships no files: attributes, images, sessions and wording are generated from one seed (rules in ``sessions``).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field

from manifests.datasets._files import option_path
from manifests.datasets.base import DatasetSource
from manifests.datasets.demo.catalogue import TEST, TRAIN, Catalogue, Size, build_catalogue, describe, reminded
from manifests.datasets.demo.files import FolderError, file_of, write_images
from manifests.datasets.demo.sessions import LONGEST, Kind
from manifests.errors import Problems
from manifests.schema import Dataset, Frozen, Image


class DemoOptions(Frozen):
    """``folder``: folder of the images, below the data folder.

    Fewer families make a smaller demo of the same kind; more families, longer sessions and retractions other datasets.
    """

    folder: str = Field("demo", min_length=1)
    seed: int = 0
    size: int = Field(96, ge=32, le=512)  # pixels, square
    train_families: int = Field(TRAIN.families, ge=1)  # per category
    test_families: int = Field(TEST.families, ge=1)  # per category
    longest: int = Field(LONGEST, ge=2, le=10)  # turns of the longest sessions
    retract: float = Field(0.0, ge=0, lt=1)  # probability that a turn replaces an earlier request
    nested: bool = False  # as for every other size: a larger catalog contains the smaller ones (``build_catalogue``)
    reminded: bool = False  # the last turn of test sessions repeats every lost request: an upper bound for a memory
    captions: bool = False  # garments described in words instead of rendered images


def catalogue_of(options: DemoOptions) -> Catalogue:
    """Return the catalog that the options ask for."""
    o = options
    train = Size(o.train_families, TRAIN.sessions, TRAIN.garments)
    test = Size(o.test_families, TEST.sessions, TEST.garments)
    return build_catalogue(o.seed, train, test, Kind(o.longest, o.retract), o.nested)


class Demo(DatasetSource):
    """Rendered garments with generated multi-turn sessions."""

    title: ClassVar[str] = "Embedded demo (rendered garments, generated sessions)"
    Options: ClassVar[type[BaseModel]] = DemoOptions

    @classmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        """Render the images below ``data`` if they do not exist yet (some seconds) and generate the sessions."""
        o: DemoOptions = options  # type: ignore[assignment]
        folder = option_path(data, o.folder, problems, "folder")
        if folder is None:
            return None
        catalogue = catalogue_of(o)
        if o.captions:
            images = {i.id: Image(id=i.id, caption=describe(i)) for i in catalogue.items}
        else:
            images = {i.id: Image(id=i.id, file=file_of(i)) for i in catalogue.items}
            try:
                write_images(catalogue.items, folder, o.seed, o.size, catalogue.grows)
            except (FolderError, OSError) as error:
                problems.add("key dataset.folder", str(error), "the demo must be able to write its images there")
                return None
        sessions = [
            reminded(s, catalogue.stories[s.id], o.seed) if o.reminded and s.split == "test" else s
            for s in catalogue.sessions
        ]
        return Dataset(
            name="demo",
            images=images,
            sessions=tuple(sessions),
            galleries=catalogue.galleries,
            images_root=None if o.captions else folder,
            attributes={item.id: item.words for item in catalogue.items},
        )
