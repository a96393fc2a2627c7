"""Render the HTML templates of the views."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def templates(package: str) -> jinja2.Environment:
    """Return the templates of a package's ``templates`` folder, which escape their values."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(resources.files(package) / "templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def render(name: str, package: str = "pipeline.views.serve", **values: Any) -> str:
    return templates(package).get_template(name).render(**values)
