"""A running average of the weights (EMA), which is validated and kept in place of the last step's."""

from __future__ import annotations

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.training.models.base import MemoryModel


class WeightAverage:
    """Average of the weights, and of statistics such as a batch normalisation's, with ``decay`` a step.

    The first step's weights start it. A decay of 0 averages nothing, and ``model`` is the trained model itself.
    """

    def __init__(self, model: MemoryModel, decay: float):
        self._trained = model
        self._average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None
        )

    def update(self) -> None:
        """Take the weights after a step in."""
        if self._average is not None:
            self._average.update_parameters(self._trained)

    @property
    def model(self) -> MemoryModel:
        """What to validate and keep."""
        return self._trained if self._average is None else self._average.module
