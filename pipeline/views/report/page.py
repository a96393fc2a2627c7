"""Write the report as one self-contained HTML file, pictures included, within a size limit."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from cache.files import replace_atomically
from manifests.errors import FashionNTMError
from pipeline.analysis.render import lines_of
from pipeline.views.retrieval.pictures import Pictures, templates

MARKUP_SHARE = 0.85  # largest share of the size limit; the rest is for pictures


class ReportError(FashionNTMError, ValueError):
    """A report that exceeds the size limit."""


def write_report(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Render ``values`` (``build.gather``) into ``path``; return the counts written: bytes, pictures, sessions.

    If the page alone is too large, sessions are left out, random ones first. If the remaining space is too small,
    pictures are replaced by their words, and the page says how many. Raises ReportError when even a page without
    sessions is too large.
    """
    options = values["options"]
    limit = int(options.megabytes * 1e6)
    values = dict(values)
    bare = _render(values, {}, 0)
    while len(bare) > MARKUP_SHARE * limit and values["strips"]:
        keep = min(len(values["strips"]) - 1, int(len(values["strips"]) * 0.8 * MARKUP_SHARE * limit / len(bare)))
        changed = {id(p.one) for p in (*values["wins"], *values["losses"])}
        values["strips"] = sorted(values["strips"], key=lambda s: id(s) not in changed)[:keep]
        bare = _render(values, {}, 0)
    chosen, wanted = _pictures(values, limit - len(bare))
    html = _render(values, chosen, wanted)
    while len(html) > limit and chosen:  # a picture's tag is slightly longer than the card that it replaces
        chosen = dict(list(chosen.items())[: int(0.95 * len(chosen))])
        html = _render(values, chosen, wanted)
    if len(html) > limit:
        raise ReportError(f"{path}: the page takes {len(html) / 1e6:.1f} MB, more than --max-mb {options.megabytes:g}")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, html)
    return {"path": str(path), "bytes": len(html), "pictures": len(chosen), "sessions": len(values["strips"])}


def _pictures(values: dict[str, Any], space: int) -> tuple[dict[str, str], int]:
    """Return image id -> base64 JPEG for as many as fit, by priority, and the number of images that have pixels."""
    pictures: Pictures = values["pictures"]
    kept = [values["kept"][1]] if values["kept"] else []
    pairs = [s for p in (*kept, *values["wins"], *values["losses"]) for s in (p.one, p.other)]
    first = []
    if values["turned"]:
        session, example = values["turned"]
        first = [session.turns[0].reference, *example.plain, *example.turned]
    shown = dict.fromkeys([*first, *(i for strip in (*pairs, *values["strips"]) for i in strip.images)])
    wanted = [i for i in shown if pictures.has_pixels(i)]
    chosen: dict[str, str] = {}
    for image in wanted:
        if (data := pictures.thumbnail(image, values["options"].thumbnail)) is None:
            continue
        text = base64.b64encode(data).decode()
        space -= len(text) + 8
        if space < 0:
            break
        chosen[image] = text
    return chosen, len(wanted)


def _render(values: dict[str, Any], pictures: dict[str, str], wanted: int) -> bytes:
    folder, environment = resources.files("pipeline.views.report") / "templates", templates("pipeline.views.report")
    environment.globals["lines_of"] = lines_of
    environment.filters["code"] = _code
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    page: dict[str, Any] = {"style": style, "script": script, "left_out": max(0, wanted - len(pictures))}
    page |= {"numbers": {image: n for n, image in enumerate(pictures)}, "words": values["pictures"].words}
    page["pixels"] = json.dumps(list(pictures.values())).replace("<", "\\u003c")
    page["made"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template("report.html").render(**values, **page).encode()


def _code(text: str) -> Any:
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else p for n, p in enumerate(parts))
