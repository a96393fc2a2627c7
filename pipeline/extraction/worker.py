"""Functions that run in a cluster worker: load the model once, compute shards, return their receipts.

Arguments and results are plain values, and an error is sent as its message: from this project, only function names
are unpickled on either side.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from cache import write_shard
from manifests.errors import FashionNTMError
from manifests.identity import changed_fields, digest
from manifests.schema import RunSpec
from pipeline.core.cluster import WorkerError, claim_gpu, keep_freed_memory
from pipeline.core.device import describe, resolve_device
from pipeline.extraction.decoding import Decoder
from pipeline.extraction.engine import process
from pipeline.extraction.extractors import load_extractor
from pipeline.extraction.extractors.base import Extractor
from pipeline.extraction.precision import checked_form
from pipeline.extraction.prepare import prepare
from pipeline.extraction.probe import choose_batch_size, default_workers
from pipeline.extraction.progress import Meter
from pipeline.extraction.work import Item, ItemFailure, ShardTask

PROCESS = secrets.token_hex(8)  # name of this process in its results
_AT_ONCE = 2  # concurrent shards: one in the model, the other being prepared or written
_slots, _model_gate, _loading = threading.BoundedSemaphore(_AT_ONCE), threading.Lock(), threading.Lock()
_decoders: dict[Extractor, list[Decoder]] = {}  # idle ones, with their processes
_models: dict[str, Extractor] = {}
_formed: set[Extractor] = set()  # extractors whose image tower already runs in the requested format
_TRIED = 12  # images on which a format is compared with the default


@dataclass(frozen=True)
class Setting:
    """Settings of a job. ``spec``: run spec as JSON values; ``fields``: expected semantic fields of the model.

    ``workers``: decoding processes, None for this worker's share of the CPUs that the models leave free.
    """

    spec: dict[str, Any]
    device: str
    fields: dict[str, Any]
    store: str
    root: str | None
    batch_size: int
    workers: int | None
    threads: int | None
    sharing: int = 1  # worker processes of one machine
    form: str = "plain"
    jpeg_decoder: str = ""  # of the other workers, see ``Extractor.jpeg_decoder``


def _told(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Let ``function`` return an error of this project as ``{"error": message, "host": name}``."""

    @wraps(function)
    def call(*given: Any) -> dict[str, Any]:
        try:
            return function(*given)
        except FashionNTMError as error:
            return {"error": f"{type(error).__name__}: {error}", "host": socket.gethostname()}

    return call


@_told
def make_shard(given: dict[str, Any], table: str, number: int, values: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Compute the rows of items and write them as shard ``number`` of ``table``, without committing it.

    ``given``, ``values``: fields of a Setting and of the items. Return the receipt (None if no item has a row), the
    failures as (position, stage, reason), seconds by stage, and the counters of this process.
    """
    with _slots:
        return _shard(Setting(**given), table, number, [Item(*item) for item in values])


def _shard(setting: Setting, table: str, number: int, items: list[Item]) -> dict[str, Any]:
    extractor, meter = _extractor(setting), Meter()
    root = Path(setting.root) if setting.root else None
    workers = _share(setting, extractor.device) if setting.workers is None else setting.workers
    if table == "image":
        _take_form(setting.form, extractor, items, root)
    with _decoder(extractor, root, workers) as decoder:
        job = (extractor, [ShardTask(table, items)], root, setting.batch_size, workers, meter)
        (outcome,) = process(*job, gate=_model_gate, decoder=decoder)
    receipt = None
    if len(outcome):
        with meter.time("write"):
            receipt = write_shard(setting.store, table, *outcome.rows(), number=number, seconds=outcome.seconds)
    place = {item.key: n for n, item in enumerate(items)}
    found: dict[str, Any] = {"receipt": receipt and asdict(receipt), "seconds": meter.seconds, "notes": meter.notes}
    found["failures"] = [(place[f.item.key], f.stage, f.reason) for f in outcome.failures]
    found["long"] = [place[item.key] for item in outcome.long]
    found["noted"] = [(place[item.key], remark) for item, remark in outcome.noted]
    return found | {"process": PROCESS, "calls": extractor.calls, "cut": extractor.cut, "loads": len(_models)}


def _share(setting: Setting, device: torch.device) -> int:
    """Return the decoding processes of this worker: every GPU of the machine has a worker, or will have one."""
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    return default_workers(device, max(setting.sharing, gpus))


@contextmanager
def _decoder(extractor: Extractor, root: Path | None, workers: int) -> Iterator[Decoder]:
    """Yield an idle decoder of the model, or a new one; it is kept for the next shard unless there is an error."""
    idle = _decoders.setdefault(extractor, [])
    decoder = idle.pop() if idle else Decoder(extractor, root, workers)
    if (decoder.root, decoder.workers) != (root, workers):  # another job
        decoder.close()
        decoder = Decoder(extractor, root, workers)
    try:
        yield decoder
    except BaseException:
        decoder.close()
        raise
    idle.append(decoder)


def _take_form(form: str, extractor: Extractor, items: list[Item], root: Path | None) -> None:
    """Switch the image tower to ``form`` after comparing it with the default on the first readable images."""
    with _model_gate:
        if form == "plain" or extractor in _formed:
            return
        parts = prepare(extractor, items[:_TRIED], root, Meter())
        if images := [part[0] for part in parts if not isinstance(part, ItemFailure)]:
            checked_form(extractor, images, form)
            _formed.add(extractor)


@_told
def measure_batch(given: dict[str, Any], todo: dict[str, list[tuple[Any, ...]]]) -> dict[str, Any]:
    """Return the device of this worker and rows per second by batch size (see ``probe.choose_batch_size``)."""
    setting = Setting(**given)
    extractor = _extractor(setting)
    items = {table: [Item(*item) for item in part] for table, part in todo.items()}
    with _model_gate:
        rates = choose_batch_size(extractor, items, Path(setting.root) if setting.root else None)
    return {"device": describe(extractor.device), "rates": rates, "jpeg_decoder": extractor.jpeg_decoder}


def _extractor(setting: Setting) -> Extractor:
    """Return the model, loaded on the first call and cached."""
    key = digest([setting.spec, setting.device, setting.form])
    with _loading:
        if key not in _models:
            keep_freed_memory()
            if setting.threads is not None:
                torch.set_num_threads(setting.threads)
            if not Path(setting.store).is_dir():
                fix = "the folder of --out must be shared by all machines, under the same path"
                raise WorkerError(f"{setting.store} is not there for the worker on {socket.gethostname()}: {fix}")
            device = setting.device
            if resolve_device(device).type == "cuda" and ":" not in device:
                device = claim_gpu(torch.cuda.device_count())
            extractor = load_extractor(RunSpec.model_validate(setting.spec), device)
            if changed := changed_fields(setting.fields, extractor.semantic()):
                what = f"on {socket.gethostname()} differs from the coordinator's ({'; '.join(changed[:3])})"
                fix = "install the same packages and use the same model files everywhere"
                raise WorkerError(f"the model of the worker {what}: {fix}")
            extractor.require()
            _models[key] = extractor
        if setting.jpeg_decoder and setting.jpeg_decoder != _models[key].jpeg_decoder:
            what = f"decodes JPEG by {_models[key].jpeg_decoder}, others by {setting.jpeg_decoder}"
            fix = "a store has rows of one decoder: use workers with the same kind of device"
            raise WorkerError(f"the worker on {socket.gethostname()} {what}, and {fix}")
        return _models[key]
