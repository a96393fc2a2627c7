"""Base class of the dataset modules: read the user's files and return a checked ``Dataset``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from manifests.errors import Problems
from manifests.protocols import apply_protocol
from manifests.schema import Dataset, Frozen


class DatasetSource(ABC):
    """Dataset format. ``Options``: the keys allowed in ``[dataset]`` of a run spec besides ``name``.

    Paths in the options are relative to the data folder (``--data``) and must stay inside it, or are absolute.
    An option ``protocol`` names a clean split (``manifests.protocols``), which ``load`` applies.
    """

    title: ClassVar[str]
    Options: ClassVar[type[BaseModel]] = Frozen

    @classmethod
    def load(cls, options: BaseModel, data: Path) -> Dataset:
        """Read and check the dataset. Raise ManifestError with every problem found in every file."""
        problems = Problems(cls.__module__.rsplit(".", 1)[-1])
        dataset = cls.read(options, data, problems)
        problems.raise_if_any()
        assert dataset is not None
        dataset.check(problems)
        problems.raise_if_any()
        dataset = dataset.model_copy(update={"notes": tuple(dict.fromkeys((*dataset.notes, *_one_name(dataset))))})
        protocol = getattr(options, "protocol", None)
        return apply_protocol(dataset, protocol) if protocol else dataset

    @classmethod
    @abstractmethod
    def read(cls, options: BaseModel, data: Path, problems: Problems) -> Dataset | None:
        """Parse the files. Add missing and malformed parts to ``problems``; return None if no dataset can be built.

        A dataset that is returned along with problems is not used.
        """


def _one_name(dataset: Dataset) -> Iterator[str]:
    """Yield a note on categories, and one on image files, that are one name on a disk that ignores case."""
    files = [image.file for image in dataset.images.values() if image.file is not None]
    categories = dict.fromkeys((*dataset.categories, *(g.category for g in dataset.galleries)))
    for what, names in (("categories", categories), ("image files", dict.fromkeys(files))):
        first: dict[str, str] = {}
        same = [(first[key], name) for name in names if first.setdefault(key := name.casefold(), name) != name]
        if same:
            one, two = same[0]
            yield f"{what} differ only by case ({len(same):,}; first: {one!r} and {two!r}): they are one name on some disks"
