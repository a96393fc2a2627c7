"""Find the image files of a dataset below its images folder, by id or by path; archives in it count as folders.

NFC and NFD names are equal, suffixes ignore case, and of several files for one id the first with an image signature
is used. Links that lead out of the images folder are followed only with the option ``links``.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from manifests.archives import SUFFIXES, ArchiveError, compressed, members, split, start_of, truncated, without_columns
from manifests.datasets._files import climbs
from manifests.errors import Problems
from manifests.schema import Frozen, Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_BOXES = (b"ftyp", b"jP  ")  # after a size of four bytes: AVIF, JPEG 2000
LINKS = "set dataset.links = true to follow links"


def fold(name: str) -> str:
    """Return ``name`` in NFC, with an image suffix in lower case."""
    name = unicodedata.normalize("NFC", name)
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.{suffix.lower()}" if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name


def looks_usable(path: str) -> bool:
    """Return whether the file has an image signature: it is not empty, a large-file pointer or an error page."""
    start = start_of(Path(path))
    return start.startswith(_STARTS) or start[4:] in _BOXES


class ImageOptions(Frozen):
    """Options of datasets with image files."""

    links: bool = False  # follow links that lead out of the images folder
    image_column: str | None = None  # of Parquet files: the images; by default the only one of bytes, or "image"
    id_column: str | None = None  # of Parquet files: the images' names; by default "id" and others like it


class ImageFolder:
    """Image files below ``root``, indexed at first use, as ``options`` say.

    ``notes()`` reports ambiguous, respelled and skipped names.
    """

    def __init__(self, root: Path, options: ImageOptions | None = None):
        options = options or ImageOptions()
        self.root, self.links, self._columns = root, options.links, (options.id_column, options.image_column)
        self._archives: dict[str, dict[str, str]] = {}
        self._linked: list[str] = []  # linked folders that were skipped
        self._unnamed: list[str] = []  # names that are not UTF-8
        self._several: list[tuple[str, str]] = []  # id, file used
        self._respelled: list[tuple[str, str]] = []  # path requested, file used
        self._broken: list[tuple[str, str]] = []  # archive, reason
        self._truncated: list[str] = []  # archives without their end

    def by_id(self, image: str) -> str | None:
        """Return the path below ``root`` (with ``/``) of an image id, a file name with or without its suffix."""
        name = fold(image)
        stem = name[: name.rfind(".")] if name.endswith(IMAGE_SUFFIXES) else name
        names = dict.fromkeys((name, *(stem + suffix for suffix in IMAGE_SUFFIXES)))
        found = [file for name in names for file in self._names.get(name, ())]
        if len(found) < 2:
            return found[0] if found else None
        taken = next((file for file in found if looks_usable(os.path.join(self.root, file))), found[0])
        self._several.append((image, taken))
        return taken

    def by_path(self, file: str) -> str | None:
        """Return the path below ``root`` of a dataset's path: relative, or absolute and inside ``root``.

        None if there is no such file. Backslashes count as slashes unless a file has them in its name.
        """
        below = self.below(file)
        if below is None:
            return None
        file = below
        if os.path.isfile(os.path.join(self.root, file)):
            return file
        inside = split(file, self.root)
        if inside is not None and os.path.isfile(os.path.join(self.root, inside[0])):
            return self._inside(inside[0]).get(file)
        wanted = fold(os.path.normpath(file.replace("\\", "/")).replace(os.sep, "/"))
        found = self._paths.get(wanted)
        if found is not None:
            self._respelled.append((file, found))
        return found

    def below(self, file: str) -> str | None:
        """Return ``file`` relative to ``root``; None if it leads out of it."""
        if os.path.isabs(file):
            for root in dict.fromkeys((os.path.abspath(self.root), os.path.realpath(self.root))):
                if file.startswith(os.path.join(root, "")):
                    file = file[len(os.path.join(root, "")) :]
                    break
        return None if climbs(file) else file

    def notes(self, missing: bool) -> list[str]:
        """Return notes for the user; linked folders and invalid names only if images are ``missing``."""
        notes = []
        if self._several:
            image, file = self._several[0]
            first = f"first: {image}, {file} is read"
            notes.append(f"{len(self._several):,} images have several files in {self.root.name}/ ({first})")
        if self._respelled:
            asked, file = self._respelled[0]
            notes.append(f"{len(self._respelled):,} image files were found under another spelling ({asked}: {file})")
        if self._truncated:
            count, first = len(self._truncated), self._truncated[0]
            notes.append(
                f"{count:,} tar files are truncated (first: {first}): what they held beyond their end is not known"
            )
        return notes + (self.left_out() if missing else [])

    def left_out(self) -> list[str]:
        """Return the skipped folders and names, with the option that changes this."""
        out = []
        if self._linked:
            count, first = len(self._linked), self._linked[0]
            out.append(f"{count:,} linked folders in {self.root.name}/ were left out (first: {first}): {LINKS}")
        if self._unnamed:
            count, first = len(self._unnamed), ascii(self._unnamed[0])
            out.append(f"{count:,} names in {self.root.name}/ are no UTF-8 (first: {first}): rename them")
        return out

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Folded file name -> paths below ``root``, in sorted order of folders and names."""
        found: dict[str, list[str]] = {}
        for file in self._walk():
            found.setdefault(fold(file.rpartition("/")[2]), []).append(file)
        return found

    @cached_property
    def _paths(self) -> dict[str, str]:
        """Folded path -> path, both below ``root``."""
        found: dict[str, str] = {}
        for file in self._walk():
            found.setdefault(fold(without_columns(file)), file)
        return found

    def files(self) -> list[str]:
        """Return the paths of all image files below ``root``, sorted by folder and name."""
        return list(self._walk())

    def _walk(self) -> Iterable[str]:
        self._linked, self._unnamed, self._broken, self._truncated = [], [], [], []
        seen: set[str] = set()  # linked folders may form a cycle
        for folder, subfolders, names in os.walk(self.root, followlinks=self.links):
            below = os.path.relpath(folder, self.root).replace(os.sep, "/").removeprefix(".").lstrip("/")
            if self.links:
                real = os.path.realpath(folder)
                if real in seen:
                    subfolders.clear()
                    continue
                seen.add(real)
            else:
                linked = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
                self._linked += [f"{below}/{name}".lstrip("/") for name in linked]
            self._unnamed += [name for name in (*subfolders, *names) if not _utf8(name)]
            subfolders[:] = sorted(filter(_utf8, subfolders))
            for name in sorted(filter(_utf8, names)):
                file = f"{below}/{name}" if below else name
                if name.lower().endswith(IMAGE_SUFFIXES):
                    yield file
                elif name.lower().endswith(SUFFIXES) or compressed(name):
                    yield from self._members(file)

    def files_in(self, archive: str) -> list[str]:
        """Return the paths of all images in one archive, in its order."""
        return list(self._members(archive))

    def _inside(self, archive: str) -> dict[str, str]:
        """Path -> path with the columns, of an archive's images."""
        if archive not in self._archives:
            self._archives[archive] = {without_columns(file): file for file in self._members(archive)}
        return self._archives[archive]

    def _members(self, archive: str) -> Iterable[str]:
        """Yield the images of an archive; a row of a Parquet file needs no suffix in its name."""
        if compressed(archive):
            self._broken.append((archive, "is compressed, so its images cannot be read at random: decompress it"))
            return
        try:
            names = members(self.root / archive, *self._columns)
            if truncated(self.root / archive) and archive not in self._truncated:
                self._truncated.append(archive)
        except (ArchiveError, OSError) as error:
            self._broken.append((archive, str(error)))
            return
        rows = archive.lower().endswith(".parquet")
        yield from (f"{archive}/{name}" for name in names if rows or name.lower().endswith(IMAGE_SUFFIXES))

    def report(self, problems: Problems) -> bool:
        """Add a problem for every archive that cannot be used; return whether there is one."""
        for archive, reason in dict.fromkeys(self._broken):
            problems.add("", reason, file=self.root / archive)
        return bool(self._broken)


def _utf8(name: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in name)


def inside(root: Path, files: Mapping[str, str], links: bool, problems: Problems) -> tuple[Path, dict[str, str]]:
    """Return a root that contains ``files`` (id -> path below ``root``) with links resolved, and their paths below it.

    Links that lead out of ``root`` are reported as one problem. With ``links`` they are resolved, and the root is the
    nearest folder that contains all files.
    """
    top = os.path.realpath(root)
    placed = {image: split(file, root) or (file, "") for image, file in files.items()}
    folders = {
        folder: os.path.realpath(os.path.join(root, folder))
        for folder in {os.path.dirname(file) for file, _ in placed.values()}
    }
    reals, kept = {}, {}  # image -> real path of its file or archive; image -> path to keep
    for image, (file, member) in placed.items():
        path = os.path.join(folders[os.path.dirname(file)], os.path.basename(file))
        reals[image] = os.path.realpath(path) if os.path.islink(path) else path
        kept[image] = f"{path}/{member}" if member else reals[image]  # an archive's name says which kind it is
    out = [image for image, real in reals.items() if not real.startswith(os.path.join(top, ""))]
    if not out:
        return root, dict(files)
    if not links:
        what = f"{len(out):,} of {len(files):,} image files are links out of the images folder"
        where = f"first: {files[out[0]]!r}, to {reals[out[0]]}"
        problems.add("", f"{what} ({where})", f"{LINKS}, or dataset.images = the folder they are in", file=root)
        return root, dict(files)
    common = os.path.commonpath([top, *(os.path.dirname(p) for i in out for p in (reals[i], kept[i]))])
    return Path(common), {i: os.path.relpath(path, common).replace(os.sep, "/") for i, path in kept.items()}


def catalogue(
    ids: Iterable[str],
    images: Path | None,
    captions: Mapping[str, str] | None,
    problems: Problems,
    notes: list[str],
    options: ImageOptions | None = None,
    source: str = "",
) -> tuple[Path | None, dict[str, Image]]:
    """Return the images folder, and the catalog of ``ids`` in order, with files below the folder and captions.

    ``images``, ``captions``: None if the dataset has none; ``source``: place of the captions. A folder without any image
    of the dataset is a problem.
    """
    ids, files = list(ids), {}
    if images:
        options = options or ImageOptions()
        folder = ImageFolder(images, options)
        files = {image: file for image in ids if (file := folder.by_id(image)) is not None}
        missing = [image for image in ids if image not in files]
        if missing:
            folder.report(problems)
        notes += folder.notes(bool(missing))
        note_missing(notes, missing, ids, f"have no file in {images.name}/")
        if ids and not files:
            example = f"{missing[0]}.jpg" if "." not in missing[0] else missing[0]
            fix = "; ".join([f"expected files such as {example}", *folder.left_out()])
            problems.add("key dataset.images", "holds no image of this dataset", fix, file=images)
        images, files = inside(images, files, options.links, problems)
    if captions is not None:
        lacking = [i for i in ids if i not in captions]
        note_missing(notes, lacking, ids, f"have no caption in {source}" if source else "have no caption")
    elif images is None:
        notes.append("no images and no captions given: sessions and galleries only")
    return images, {i: Image(id=i, file=files.get(i), caption=(captions or {}).get(i)) for i in ids}


def note_missing(notes: list[str], missing: list[str], ids: list[str], what: str) -> None:
    """Add e.g. ``38 of 13,578 images have no caption (first: B000ABC)`` to ``notes``, if any is missing."""
    if missing:
        count = f"{len(missing):,} of {len(ids):,} images {what}"
        notes.append(f"{count} (first: {missing[0]}); extraction records them as failures")
