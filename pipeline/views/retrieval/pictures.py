"""HTML templates of the views, and catalog images as small JPEGs for a page, or the words shown in their place."""

from __future__ import annotations

import io
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from manifests.schema import Dataset
from pipeline.extraction.images import ItemError, decode, read

if TYPE_CHECKING:
    import jinja2
    import PIL.Image

QUALITY = 78
KEPT = 4096  # thumbnails kept in memory: about 16 MB at 128 pixels


class Pictures:
    """Thumbnails of one dataset's images, made on first use. Thread-safe."""

    def __init__(self, dataset: Dataset, kept: int = KEPT):
        self.dataset = dataset
        self._root = dataset.images_root.resolve() if dataset.images_root else None
        # (image, size) -> a JPEG of at most ``size`` pixels on its longer side; None if it has no readable file
        self.thumbnail = lru_cache(kept)(self._thumbnail)

    def words(self, image: str) -> str:
        """Return the words for an image: its caption, else its attribute words, else its id."""
        record = self.dataset.images.get(image)
        if record is not None and record.caption:
            return record.caption
        fields = self.dataset.attributes.get(image, {})
        return ", ".join(dict.fromkeys(word for words in fields.values() for word in words)) or image

    def has_pixels(self, image: str) -> bool:
        """Return whether the catalog names a file for the image (which may still be missing or corrupt)."""
        record = self.dataset.images.get(image)
        return bool(self._root and record and record.file)

    def _thumbnail(self, image: str, size: int) -> bytes | None:
        record = self.dataset.images.get(image)
        if self._root is None or record is None or record.file is None:
            return None
        try:
            return small_jpeg(decode(read(self._root, record.file)), size)
        except ItemError:
            return None


def small_jpeg(picture: PIL.Image.Image, size: int) -> bytes:
    """Return an RGB image as a JPEG of at most ``size`` pixels on its longer side; shrinks ``picture`` itself."""
    picture.thumbnail((size, size))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def templates(package: str) -> jinja2.Environment:
    """Return the templates of a package's ``templates`` folder, which escape their values."""
    import jinja2

    loader, strict = jinja2.FileSystemLoader(str(resources.files(package) / "templates")), jinja2.StrictUndefined
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=strict)


def render(name: str, package: str = "pipeline.views.serve", **values: Any) -> str:
    return templates(package).get_template(name).render(**values)
