"""Render the HTML templates of the views."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def templates(package: str) -> jinja2.Environment:
    """Return the templates of a package's ``templates`` folder, which escape their values."""
    import jinja2

    loader, strict = jinja2.FileSystemLoader(str(resources.files(package) / "templates")), jinja2.StrictUndefined
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=strict)


def render(name: str, package: str = "pipeline.views.serve", **values: Any) -> str:
    return templates(package).get_template(name).render(**values)
