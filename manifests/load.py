"""Load specs from TOML files; all problems of a file are raised together."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from manifests.datasets import datasets
from manifests.errors import ManifestError, Problem, Problems, nearest
from manifests.options import parse_options, valid_options
from manifests.schema import Dataset, RunSpec
from manifests.text import decode_text, read_bounded

PACKAGE = "package:"  # begins a path below the project's own folder


def shipped(kind: str) -> dict[str, Path]:
    """Return the specs shipped with the project, by name. ``kind``: "runs", "ablations" or "tables"."""
    folder = Path(str(resources.files("manifests"))) / "specs" / kind
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_toml(path: Path) -> dict[str, Any]:
    """Return the file as a dict. Raise ManifestError naming file and line."""
    try:
        return tomllib.loads(decode_text(read_bounded(path)))
    except FileNotFoundError:
        raise ManifestError(
            [Problem(str(path), "", "no such file", "give a spec's name or a path to a .toml file")]
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError([Problem(str(path), "", f"cannot be read: {error}")]) from error
    except (ValueError, RecursionError) as error:  # ValueError: includes integers with thousands of digits
        raise ManifestError([Problem(str(path), "", f"not valid TOML: {str(error)[:200]}")]) from error


def spec_path(name: str, kind: str = "runs") -> Path:
    """Return the file of a spec given by shipped name or by path. Raise ManifestError with the nearest name."""
    known = shipped(kind)
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path
    raise ManifestError([Problem(name, "", f"no {kind[:-1]} spec of this name", nearest(name, known))])


def load_spec(name: str, overrides: Sequence[str] = (), given: str = "") -> RunSpec:
    """Load a run spec by shipped name or path, with ``key.sub=value`` overrides (TOML values; bare text is a string).
    An override that names another dataset, extractor or composer drops the file's options for the previous one.
    ``given``: name of the spec in printed commands, if it differs from ``name``.

    Raise ManifestError with every problem of the file: unknown keys with the nearest name, wrong types, unknown
    dataset. Extractor, composer and model options are checked by ``pipeline.jobs.specs.check``.
    """
    path = spec_path(name)
    values = read_toml(path)
    for override in sorted(overrides, key=lambda o: not _names_a_part(o)):
        _apply(values, override)
    problems = Problems(path)
    spec = parse_options(RunSpec, _resolve(values), str(path), "", problems)
    dataset = values.get("dataset")
    wanted = dataset.get("name") if isinstance(dataset, dict) else None
    if isinstance(wanted, str) and wanted not in datasets.names():
        problems.add("key dataset.name", f"unknown dataset {wanted!r}", nearest(wanted, datasets.names()))
    problems.raise_if_any()
    assert spec is not None
    return spec.model_copy(update={"given": given or name})


def recorded_spec(values: Any) -> RunSpec:
    """Return the spec that a run records. Raises ValueError for other content."""
    return RunSpec.model_validate(_resolve(values))


def portable(value: Any) -> Any:
    """Return options with each file shipped with the project as ``package:a/b``, as specs name it.

    What a run or a store records must not depend on where the project is installed.
    """
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    root = Path(__file__).resolve().parent.parent
    if isinstance(value, str) and Path(value).is_relative_to(root / "pipeline"):
        return f"{PACKAGE}{Path(value).relative_to(root).as_posix()}"
    return value


def load_dataset(spec: RunSpec, data: Path) -> Dataset:
    """Load the spec's dataset from the data folder. Raise ManifestError with every problem in every file."""
    source = datasets.get(spec.dataset.name, "", "key dataset.name")
    options = valid_options(source.Options, spec.dataset.options, spec.name, "dataset")
    inputs = {"windows": spec.windows, "prefixes": spec.prefixes, "dialogs": spec.dialogs}
    dataset = source.load(options, data).model_copy(update=inputs)
    if "final" in dataset.turn_targets:
        _refuse_recombine(spec, Problems(spec.name))
    return dataset


def _refuse_recombine(spec: RunSpec, problems: Problems) -> None:
    """Raise ManifestError for each [training] with ``recombine``: pairs with a final target form no chain."""
    trainings = {"training": spec.training.recombine}
    for model, options in spec.models.items():
        own = options.get("training")
        trainings[f"models.{model}.training"] = own.get("recombine", 0) if isinstance(own, dict) else 0
    for place, share in trainings.items():
        if share:
            what = f"{share} on a dataset whose turns lead to the final target"
            fix = "other histories join pairs to next references: leave it out, or use drop_turns"
            problems.add(f"key {place}.recombine", what, fix)
    problems.raise_if_any()


def _resolve(value: Any) -> Any:
    """Resolve ``package:a/b`` to a file shipped with the project; return other values unchanged."""
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    if isinstance(value, str) and value.startswith(PACKAGE):
        return str(Path(__file__).resolve().parent.parent / value.removeprefix(PACKAGE))
    return value


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise ManifestError([Problem("--set", override, "not of the form key.sub=value", "e.g. training.epochs=20")])
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()  # paths and words need no quotes
    for name in path[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ManifestError([Problem("--set", override, f"{name!r} is a value, not a table")])
    if _names_a_part(override) and values.get("name", value) != value:
        values.clear()  # another part: the file's options belong to the previous one
    values[path[-1]] = value


def _names_a_part(override: str) -> bool:
    """Return whether the override names a part (``extractor.name=...``); these apply before the options of the part."""
    return override.partition("=")[0].strip() in ("dataset.name", "extractor.name", "composer.name")
