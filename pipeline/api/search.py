"""One search over a spec's gallery, for the command `search`."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.api.engine import Engine
from pipeline.views.search.found import Found


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
