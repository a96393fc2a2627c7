"""``serve``: a local page for multi-turn search with trained memory models. starlette, jinja2 and plain JavaScript."""
