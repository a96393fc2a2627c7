"""Search space, a range or a list of values per option; and the next configuration: at random, or by TPE (optuna)."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from manifests.errors import ManifestError, Problem, nearest
from manifests.schema import Training
from pipeline.analysis.tuning.trials import Trial, TuneError
from pipeline.training.determinism import derive_seed
from pipeline.training.models import models as registry

# Searched by default if the model has the option.
DEFAULTS: Mapping[str, str] = {
    "hidden": "50,100,200,400",
    "stages": "2,4,8",
    "slots": "4,8",
    "dropout": "0.0..0.6",
    "residual": "true,false",
    "init": '"paper","symmetry-breaking","addressed"',
    "alpha": "0.05..1.0",
    "training.learning_rate": "1e-4..1e-2:log",
    "training.scale": "1.0..50.0:log",
}


@dataclass(frozen=True)
class Axis:
    """One option: a list of ``choices``, or the range [low, high], uniform or log-uniform."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False  # integers only

    def draw(self, rng: np.random.Generator) -> Any:
        if self.choices:
            return self.choices[int(rng.integers(len(self.choices)))]
        if self.whole and not self.log:
            return int(rng.integers(int(self.low), int(self.high) + 1))
        if not self.log:
            return float(rng.uniform(self.low, self.high))
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return round(value) if self.whole else value

    def distribution(self, kinds: Any) -> Any:
        if self.choices:
            return kinds.CategoricalDistribution(self.choices)
        if self.whole:
            return kinds.IntDistribution(int(self.low), int(self.high), log=self.log)
        return kinds.FloatDistribution(self.low, self.high, log=self.log)

    @property
    def text(self) -> str:
        if self.choices:
            return f"{self.key}={','.join(map(str, self.choices))}"
        return f"{self.key}={self.low:g}..{self.high:g}" + (":log" if self.log else "")


def parse_axis(text: str) -> Axis:
    """Parse ``dropout=0..0.5``, ``training.learning_rate=1e-4..1e-2:log``, ``hidden=50,100`` or ``init="paper"``.

    If both ends of a range are integers, values are integers. Raises ManifestError.
    """

    def wrong(what: str) -> ManifestError:
        return ManifestError([Problem("--search", text, what, "write KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B,C")])

    key, separator, values = text.partition("=")
    key = key.strip()
    if not separator or not key or not values.strip():
        raise wrong("not of the form KEY=VALUES")
    if ".." not in values:
        try:
            return Axis(key, choices=tuple(tomllib.loads(f"v = [{values}]")["v"]))
        except tomllib.TOMLDecodeError:
            return Axis(key, choices=tuple(word.strip() for word in values.split(",")))
    span, _, how = values.partition(":")
    try:
        ends = [tomllib.loads(f"v = {end.strip()}")["v"] for end in span.split("..")]
        low, high = (float(end) for end in ends)
    except (ValueError, TypeError):
        raise wrong("the ends of the range are not two numbers") from None
    if how.strip() not in ("", "log"):
        raise wrong(f"unknown scale {how.strip()!r}")
    if not low < high or (how and low <= 0):
        raise wrong("the range is empty" if low >= high else "a logarithm needs ends above 0")
    return Axis(key, low=low, high=high, log=bool(how), whole=all(isinstance(end, int) for end in ends))


def space_for(model: str, asked: Sequence[str] = ()) -> tuple[Axis, ...]:
    """Return the requested axes, or the default ones of ``model``. Raises ManifestError for an option it lacks."""
    kind = registry.get(model, "--model")
    own = list(kind.Options.model_fields)
    known = [*own, *(f"training.{name}" for name in Training.model_fields)] if kind.trainable else own
    texts = asked or [f"{key}={values}" for key, values in DEFAULTS.items() if key in known]
    axes = [parse_axis(text) for text in texts]
    strange = [a.key for a in axes if a.key not in known]
    problems = [Problem("--search", key, f"{model} has no such option", nearest(key, known)) for key in strange]
    repeated = {a.key for a in axes if sum(b.key == a.key for b in axes) > 1}
    problems += [Problem("--search", key, "given more than once", "each may appear once") for key in sorted(repeated)]
    if not axes:
        problems.append(Problem("--model", model, "has nothing to search", "choose another model"))
    if problems:
        raise ManifestError(problems)
    return tuple(axes)


def nested(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    head = "training."
    options = {k: v for k, v in params.items() if not k.startswith(head)}
    return options, {k.removeprefix(head): v for k, v in params.items() if k.startswith(head)}


def propose(sampler: str, axes: Sequence[Axis], trials: Sequence[Trial], seed: int) -> dict[str, Any]:
    """Return the next trial's parameters. They depend only on seed and previous trials, so a search resumes exactly."""
    number = len(trials)
    if sampler == "random":
        rng = np.random.default_rng(derive_seed(seed, "trial", number))
        return {axis.key: axis.draw(rng) for axis in axes}
    return _tpe(axes, trials, derive_seed(seed, "tpe", number) % 2**32)


def _tpe(axes: Sequence[Axis], trials: Sequence[Trial], seed: int) -> dict[str, Any]:
    try:
        import optuna
    except ImportError as error:
        raise TuneError(f"--sampler tpe needs optuna ({error}): install fashion-ntm[tune]") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {axis.key: axis.distribution(optuna.distributions) for axis in axes}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for trial in trials:
        if trial.value is not None:
            study.add_trial(optuna.trial.create_trial(params=trial.params, distributions=kinds, value=trial.value))
    return dict(study.ask(kinds).params)
