"""Check the options of a named part against its pydantic model and report every wrong key with its place."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from manifests.errors import Problem, Problems, nearest
from manifests.text import brief

M = TypeVar("M", bound=BaseModel)


def parse_file(model: type[M], values: dict[str, Any], file: str) -> M:
    """Parse the TOML values of ``file`` as a ``model`` and run its ``check``, if it has one.

    Raise ManifestError with every problem found.
    """
    spec, problems = valid_options(model, values, file, ""), Problems(file)
    if hasattr(spec, "check"):
        spec.check(problems)
        problems.raise_if_any()
    return spec


def valid_options(model: type[M], options: dict[str, Any], file: str, prefix: str) -> M:
    """Return ``model(**options)``. Raise ManifestError with every problem found."""
    problems = Problems(file)
    parsed = parse_options(model, options, file, prefix, problems)
    problems.raise_if_any()
    assert parsed is not None
    return parsed


def problems_of(error: ValidationError, model: type[BaseModel], file: str, prefix: str = "") -> list[Problem]:
    """Convert a pydantic error to problems: dotted key, value found, value expected."""
    found = []
    for item in error.errors():
        path = [str(p) for p in item["loc"]]
        place = "key " + ".".join(filter(None, [prefix, *path]))
        if item["type"] == "extra_forbidden":
            owner = _model_at(model, path[:-1])
            hint = nearest(path[-1], owner.model_fields) if owner else ""
            found.append(Problem(file, place, "unknown key", hint))
        elif item["type"] == "missing":
            found.append(Problem(file, place, "missing", "this key is required"))
        else:
            found.append(Problem(file, place, f"found {brief(item['input'])}", item["msg"][:200]))
    return found


def _model_at(model: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    for name in path:
        if name.isdigit():  # a list index: the members are of the model found so far
            continue
        field = model.model_fields.get(name)
        annotation = field.annotation if field else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)  # type: ignore
        if model is None:
            return None
    return model


def parse_options(model: type[M], options: dict[str, Any], file: str, prefix: str, problems: Problems) -> M | None:
    """Return ``model(**options)``; if they do not fit, add the problems and return None."""
    try:
        return model.model_validate(options)
    except ValidationError as error:
        problems.found.extend(problems_of(error, model, file, prefix))
        return None
