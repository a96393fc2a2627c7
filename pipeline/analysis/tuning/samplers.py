"""Proposal of the next configuration: at random, or by TPE (optuna) from the previous trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from manifests.errors import FashionNTMError
from pipeline.analysis.tuning.space import Axis
from pipeline.analysis.tuning.trials import Trial
from pipeline.training.determinism import derive_seed


class SamplerError(FashionNTMError):
    """The library of a sampler is not installed."""


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
        raise SamplerError(f"--sampler tpe needs optuna ({error}): install fashion-ntm[tune]") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {axis.key: _distribution(optuna, axis) for axis in axes}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for trial in trials:
        if trial.value is not None:
            study.add_trial(optuna.trial.create_trial(params=trial.params, distributions=kinds, value=trial.value))
    return dict(study.ask(kinds).params)


def _distribution(optuna: Any, axis: Axis) -> Any:
    if axis.choices:
        return optuna.distributions.CategoricalDistribution(axis.choices)
    if axis.whole:
        return optuna.distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
