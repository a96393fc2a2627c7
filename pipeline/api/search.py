"""One search over a spec's gallery, for the command `search`: its results as text, JSON or a self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.api.engine import Engine
from pipeline.views.retrieval.pictures import Pictures, render

PIXELS = 192  # longer side of a thumbnail


@dataclass(frozen=True)
class Found:
    """Results of a search, best first. ``hits``: (image id, score); ``image``: the start, "" for texts alone."""

    title: str
    image: str
    texts: tuple[str, ...]
    model: str
    gallery: str
    hits: Sequence[tuple[str, float]]
    pictures: Pictures

    def as_dict(self) -> dict[str, Any]:
        """Return the query and its results, each with rank, id, score, file and caption."""
        images = {i: self.pictures.dataset.images[i] for i, _ in self.hits}
        known = {i: {"file": image.file, "caption": image.caption} for i, image in images.items()}
        rows = [{"rank": n, "id": i, "score": round(s, 6), **known[i]} for n, (i, s) in enumerate(self.hits, start=1)]
        query = {"image": self.image or None, "texts": list(self.texts)}
        return {"query": query, "gallery": self.gallery, "model": self.model, "results": rows}

    def text(self) -> str:
        """Return one line per result: rank, score, id and words."""
        width = max((len(i) for i, _ in self.hits), default=0)
        found = {i: self.pictures.words(i) for i, _ in self.hits}
        words = {i: "" if shown == i else shown for i, shown in found.items()}
        lines = (f"{n:4}  {s:7.4f}  {i:{width}}  {words[i]}".rstrip() for n, (i, s) in enumerate(self.hits, start=1))
        return "\n".join(lines)

    def html(self, start: bytes | None = None) -> str:
        """Return the page. ``start``: JPEG of a start image outside the catalog."""
        known = self.image in self.pictures.dataset.images
        shown = self._source(self.image) if known else _inline(start)
        looks = {i: {"words": self.pictures.words(i), "src": self._source(i)} for i, _ in self.hits}
        tiles = [{"rank": n, "id": i, "score": f"{s:.4f}", **looks[i]} for n, (i, s) in enumerate(self.hits, start=1)]
        return render("search.html", "pipeline.api", found=self, start=shown, tiles=tiles)

    def _source(self, image: str) -> str:
        return _inline(self.pictures.thumbnail(image, PIXELS))


def search(
    engine: Engine, title: str, image: str | None, texts: Sequence[str], k: int, gallery: str | None = None
) -> tuple[Found, bytes | None]:
    """Return the results, and the JPEG of a start image outside the catalog. ``image``: a catalog id, or a file.

    With ``image`` and ``texts`` the first run answers, turn by turn; each alone is searched without a memory model.
    """
    name, start = engine.gallery(gallery), None
    if image is not None:
        dialogue = engine.start(image, name)
        start = dialogue.start_jpeg
    if image is not None and texts:
        for text in texts:
            dialogue.say(text, k)
        hits, model = dialogue.results(k), engine.models[0]
    else:
        hits, model = engine.search(image, texts, k, name), ""
    return Found(title, image or "", tuple(texts), model, name, hits, engine.talks.pictures), start


def _inline(jpeg: bytes | None) -> str:
    return "" if jpeg is None else "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
