"""Metrics of training runs to TensorBoard, Weights & Biases, Trackio or MLflow: one small interface, none required."""

from __future__ import annotations

import contextvars
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from manifests.errors import IncompleteError
from manifests.identity import flat
from manifests.schema import Frozen

PROJECT = "fashion-ntm"
RUN_TAG = "fashion_ntm.run"  # MLflow's tag with the run id


class Followed(Frozen):
    """A run as a tracker names it. ``config``: its identity fields."""

    id: str
    name: str  # dataset, model, seed and id
    config: dict[str, Any]


class Channel(Protocol):
    """One run at a tracker. ``log`` sends an epoch's metrics; ``close`` marks it as finished, or as interrupted."""

    def log(self, values: Mapping[str, float], epoch: int) -> None: ...

    def close(self, finished: bool) -> None: ...


class TensorBoard:
    """Event files below ``<out>/tensorboard``: ``tensorboard --logdir OUT/tensorboard``."""

    def __init__(self, run: Followed, out: Path, epoch: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard" / run.name.replace(" ", "-")), purge_step=epoch)
        self.writer.add_text("config", str(flat(run.config)))

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, epoch)

    def close(self, finished: bool) -> None:
        self.writer.close()


class Wandb:
    """Weights & Biases, whose own variables and login apply (``WANDB_MODE=offline``); its files are in ``<out>/wandb``."""

    def __init__(self, run: Followed, out: Path, epoch: int):
        import wandb

        about: dict[str, Any] = {"project": PROJECT, "name": run.name, "config": run.config, "id": run.id}
        resume = "allow" if epoch > 1 else None  # None: a run that is trained again replaces the earlier one
        self.run = wandb.init(**about, resume=resume, reinit="create_new", dir=str(out))
        self.run.define_metric("*", step_metric="epoch")

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self.run.log({**values, "epoch": epoch})

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class Trackio:
    """Trackio, whose own variables apply (``TRACKIO_DIR``, ``TRACKIO_SPACE_ID``)."""

    def __init__(self, run: Followed, out: Path, epoch: int):
        import trackio

        resume = "allow" if epoch > 1 else "never"
        # In a context of its own: ``init`` ends the run that it finds in the current one.
        self.run = contextvars.Context().run(
            trackio.init, project=PROJECT, name=run.name, config=run.config, resume=resume
        )

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self.run.log(dict(values), step=epoch)

    def close(self, finished: bool) -> None:
        self.run.finish()


class MLflow:
    """MLflow, at ``MLFLOW_TRACKING_URI`` or in ``<out>/mlflow.db``."""

    def __init__(self, run: Followed, out: Path, epoch: int):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        place = os.environ.get("MLFLOW_TRACKING_URI")
        self.client = MlflowClient(place or f"sqlite:///{(out / 'mlflow.db').resolve()}")
        found = self.client.get_experiment_by_name(PROJECT)
        files = None if place else (out / "mlflow-artifacts").resolve().as_uri()
        experiment = found.experiment_id if found else self.client.create_experiment(PROJECT, files)
        earlier = self.client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run.id}'") if epoch > 1 else []
        if earlier:  # newest first
            self.run = earlier[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            return
        self.run = self.client.create_run(experiment, run_name=run.name, tags={RUN_TAG: run.id}).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in flat(run.config).items()]
        self.client.log_batch(self.run, params=params)

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key.replace("@", "_at_"), value, now, epoch) for key, value in values.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


TRACKERS: dict[str, Callable[[Followed, Path, int], Channel]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": MLflow,
}


class Trackers:
    """The chosen trackers of a training job. ``names``: keys of ``TRACKERS``.

    A tracker that fails, such as a server that cannot be reached, is named in ``say`` and left out from then on:
    training continues, and metrics.jsonl has every number. What trackers print goes to stderr.

    Raises IncompleteError, with the install command, for a package that is not installed.
    """

    def __init__(self, names: tuple[str, ...], out: Path, say: Callable[[str], None]):
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if missing:
            extras = ",".join(missing)
            raise IncompleteError(f"--log {missing[0]} needs a package: python -m pip install 'fashion-ntm[{extras}]'")
        for name in names:
            importlib.import_module(name)  # takes seconds, which are no training time
        self.names, self.out, self.say = list(dict.fromkeys(names)), out, say
        self._channels: dict[tuple[str, str], Channel] = {}

    def log(self, run: Followed, metrics: Mapping[str, Any]) -> None:
        """Send an epoch's metrics; a run is opened at its first epoch in this process."""
        for name in list(self.names):
            with self._guarded(name):
                epoch, key = int(metrics["epoch"]), (name, run.id)
                if key not in self._channels:
                    self._channels[key] = TRACKERS[name](run, self.out, epoch)
                self._channels[key].log(scalars(metrics), epoch)

    def close(self, finished: bool = True) -> None:
        """Close all open runs. ``finished``: False after an interruption."""
        channels, self._channels = self._channels, {}
        for (name, _), channel in channels.items():
            if name in self.names:
                with self._guarded(name):
                    channel.close(finished)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # trackers have no common base of their errors
            first = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
            self.names.remove(name)
            self.say(f"{name}: {first}; training continues without it, and metrics.jsonl of the run has every number")


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics.jsonl by name, nested ones as ``validation/R@5``; without the epoch."""
    values = flat(metrics, "/").items()
    return {k: float(v) for k, v in values if isinstance(v, int | float) and not isinstance(v, bool) and k != "epoch"}
