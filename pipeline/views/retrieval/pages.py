"""Render the HTML templates of the views."""

from __future__ import annotations

from importlib import resources
from typing import Any


def render(name: str, package: str = "pipeline.views.serve", **values: Any) -> str:
    """Render a template of a package's ``templates`` folder, with values escaped."""
    import jinja2

    folder = str(resources.files(package) / "templates")
    loader = jinja2.FileSystemLoader(folder)
    return (
        jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        .get_template(name)
        .render(**values)
    )
