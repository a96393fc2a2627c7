"""Write a run spec as TOML that ``load_spec`` reads back to an equal spec."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from manifests.schema import RunSpec


def spec_toml(spec: RunSpec, comments: tuple[str, ...] = ()) -> str:
    """Return ``spec`` as TOML without the keys at their default, below the ``comments``."""
    values = spec.model_dump(mode="json", exclude_defaults=True)
    values["models"] = dict(spec.models)
    lines = [f"# {comment}" for comment in comments]
    return "\n".join([*lines, *_table(values, ())]) + "\n"


def _table(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {k: v for k, v in values.items() if not isinstance(v, Mapping) and v is not None}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = (*path, key)
            below = _table(value, inner)
            only_tables = value and all(isinstance(v, Mapping) for v in value.values())
            lines += below if only_tables else ["", f"[{'.'.join(map(_key, inner))}]", *below]
    return lines


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    """Write a value as TOML: JSON with DEL escaped, since strings, numbers, booleans and arrays are written alike."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
