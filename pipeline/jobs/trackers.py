"""Metrics of training runs to TensorBoard, Weights & Biases, Trackio or MLflow: one small interface, none required."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from manifests.errors import IncompleteError
from manifests.identity import flat
from manifests.schema import Frozen

PROJECT = "fashion-ntm"


class Followed(Frozen):
    """A run as a tracker names it. ``config``: its identity fields."""

    id: str
    name: str  # dataset, model, seed and id
    config: dict[str, Any]


class Channel(Protocol):
    """One run at a tracker."""

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Send the metrics of an epoch."""

    def close(self) -> None:
        """Mark the run as finished."""


class TensorBoard:
    """Event files below ``<out>/tensorboard``: ``tensorboard --logdir OUT/tensorboard``."""

    def __init__(self, run: Followed, out: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard" / run.name.replace(" ", "-")))
        self.writer.add_text("config", str(run.config))

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, epoch)

    def close(self) -> None:
        self.writer.close()


class WandbLike:
    """W&B, or Trackio, whose interface is the same. Their own variables and logins apply (``WANDB_MODE=offline``)."""

    def __init__(self, run: Followed, out: Path, package: str):
        module = importlib.import_module(package)
        more = {"id": run.id, "resume": "allow", "reinit": "create_new", "dir": str(out)} if package == "wandb" else {}
        self.run = module.init(project=PROJECT, name=run.name, config=run.config, **more)

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self.run.log(dict(values) | {"epoch": epoch})

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """MLflow, at ``MLFLOW_TRACKING_URI`` or in ``<out>/mlflow.db``."""

    def __init__(self, run: Followed, out: Path):
        from mlflow import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'mlflow.db').resolve()}"
        self.client = MlflowClient(place)
        found = self.client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self.client.create_experiment(PROJECT)
        self.run = self.client.create_run(experiment, run_name=run.name).info.run_id
        for key, value in run.config.items():
            self.client.log_param(self.run, key, str(value)[:500])

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        for key, value in values.items():
            self.client.log_metric(self.run, key.replace("@", "_at_"), value, step=epoch)

    def close(self) -> None:
        self.client.set_terminated(self.run)


TRACKERS: dict[str, Callable[[Followed, Path], Channel]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda run, out: WandbLike(run, out, "wandb"),
    "trackio": lambda run, out: WandbLike(run, out, "trackio"),
    "mlflow": MLflow,
}


class Trackers:
    """The chosen trackers of a training job. ``names``: keys of ``TRACKERS``.

    Raises IncompleteError, with the install command, for a package that is not installed.
    """

    def __init__(self, names: tuple[str, ...], out: Path):
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if missing:
            extras = ",".join(missing)
            raise IncompleteError(f"--log {missing[0]} needs a package: python -m pip install 'fashion-ntm[{extras}]'")
        self.names, self.out = names, out
        self._channels: dict[str, list[Channel]] = {}

    def log(self, run: Followed, metrics: Mapping[str, Any]) -> None:
        """Send an epoch's metrics; a run is opened at its first epoch."""
        if run.id not in self._channels:
            self._channels[run.id] = [TRACKERS[name](run, self.out) for name in self.names]
        for channel in self._channels[run.id]:
            channel.log(scalars(metrics), int(metrics["epoch"]))

    def close(self) -> None:
        """Close all open runs."""
        for channels in self._channels.values():
            for channel in channels:
                channel.close()
        self._channels = {}


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics.jsonl by name, nested ones as ``validation/R@5``; without the epoch."""
    values = flat(metrics, "/").items()
    return {k: float(v) for k, v in values if isinstance(v, int | float) and not isinstance(v, bool) and k != "epoch"}
