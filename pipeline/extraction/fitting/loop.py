"""Training loop of a single-turn model: in-batch cross-entropy over cosine similarity, resumable; and its recall.

The state on disk has weights and optimizer moments as safetensors, the rest as JSON, written atomically.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import AdamW

from cache.files import replace_atomically, replacing
from cache.recovery import remove_temporaries
from manifests.errors import FashionNTMError
from manifests.identity import changed_fields, file_digest
from manifests.schema import Dataset, Session
from manifests.text import on_one_line
from pipeline.composition.fit import contrastive_loss, mean_recalls
from pipeline.evaluation.ranking import ranks
from pipeline.extraction.extractors._fittable import FitOptions, Fittable
from pipeline.extraction.fitting.triplets import Loader, Triplet, TripletBatch, triplets_of

STATE = "state.json"
SAVE_SECONDS = 120.0  # between checkpoints; does not affect the weights
KS = (10, 50)


@dataclass
class Progress:
    """Number of steps, the losses of the current epoch, and the mean loss of each finished epoch."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)


def save_state(
    folder: Path, network: nn.Module, optimizer: AdamW, progress: Progress, starts: Mapping[str, Any]
) -> None:
    """Write the complete training state; a kill at any time leaves the old state or the new one.

    ``starts``: content digests of the initial weights, checked by ``load_state``. Random numbers depend on
    (seed, step), so no generator state is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for i, parameter in enumerate(trained(network)):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimiser.{i}.{key}"] = torch.as_tensor(value)
    file = folder / f"state-{progress.step}.safetensors"
    remove_temporaries(folder)  # of a killed fit
    with replacing(file) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    about = {"file": file.name, "sha256": file_digest(file), "started_from": dict(starts), **vars(progress)}
    replace_atomically(folder / STATE, json.dumps(about).encode() + b"\n")
    for old in folder.glob("state-*"):
        if old.name != file.name:
            old.unlink()


def load_state(folder: Path, network: nn.Module, optimizer: AdamW, starts: Mapping[str, Any]) -> Progress:
    """Load the state in ``folder`` into ``network`` and ``optimizer``; return a new Progress if there is none.

    Raises FashionNTMError with the folder to remove when the files do not match each other, or the initial weights were
    others than ``starts``.
    """
    try:
        about: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Progress()
    try:
        if changed := changed_fields(about.pop("started_from", {}), dict(starts)):
            raise ValueError(f"it started from other weights: {'; '.join(changed)}")
        file = folder / about.pop("file")
        if file_digest(file) != about.pop("sha256"):
            raise ValueError(f"{file.name} has changed since it was written")
        tensors = load_file(file)
        network.load_state_dict(_part(tensors, "network."))
        for i, parameter in enumerate(trained(network)):
            moments = _part(tensors, f"optimiser.{i}.")
            optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in moments.items()}
        return Progress(**about)
    except Exception as error:  # JSON, safetensors and torch raise different types for invalid files
        what = f"the unfinished fit in {folder} cannot be resumed ({on_one_line(error)})"
        raise FashionNTMError(f"{what}: remove that folder to fit from the start") from error


def trained(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


Report = Callable[[Progress, int, float], None]  # progress, total steps, triplets per second


def fit(
    extractor: Fittable,
    loader: Loader,
    triplets: Sequence[Triplet],
    options: FitOptions,
    alpha: float,
    folder: Path,
    report: Report = lambda *_: None,
    save_seconds: float = SAVE_SECONDS,
) -> Progress:
    """Train ``extractor.network`` in place on ``triplets``, starting from the state in ``folder`` if there is one.

    Order and random numbers depend on (seed, epoch) and (seed, step): on a CPU, an interrupted and resumed fit gives
    bit-identical weights to an uninterrupted one on the same machine and thread count. The last state is kept in
    ``folder``.
    Raises FashionNTMError when fewer than two triplets are readable, or the loss is not finite.
    """
    if len(triplets) < 2:
        raise FashionNTMError(f"{len(triplets)} train triplets: an extractor needs at least two to be fitted on")
    network, device = extractor.network, extractor.device
    groups = [{"params": [p], "weight_decay": options.weight_decay if p.ndim >= 2 else 0.0} for p in trained(network)]
    optimizer = AdamW(groups, lr=options.learning_rate)
    progress = load_state(folder, network, optimizer, extractor.starts)
    per_epoch = math.ceil(len(triplets) / options.batch_size)
    total, saved, began, done = options.epochs * per_epoch, time.monotonic(), time.monotonic(), 0
    network.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for batch in loader.batches(triplets, _parts(len(triplets), per_epoch, options, progress.step)):
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * cycle(progress.step, total, options.warmup)
            loss = _step(extractor, batch, optimizer, options, alpha, progress.step)
            progress.step += 1
            done += len(batch.targets)
            if loss is not None:
                progress.losses.append(loss)
            if progress.step % per_epoch == 0:
                if not progress.losses:
                    reason = next(iter(loader.unreadable.items()), ("", "no reason known"))
                    raise FashionNTMError(f"no triplet could be read, the first: {reason[0]}: {reason[1]}")
                progress.curve.append(float(np.mean(progress.losses)))
                progress.losses = []
            report(progress, total, done / (time.monotonic() - began))
            if time.monotonic() - saved >= save_seconds and progress.step < total:
                save_state(folder, network, optimizer, progress, extractor.starts)
                saved = time.monotonic()
    save_state(folder, network, optimizer, progress, extractor.starts)
    network.eval()
    return progress


def _step(
    extractor: Fittable, batch: TripletBatch, optimizer: AdamW, options: FitOptions, alpha: float, step: int
) -> float | None:
    """Apply one update; return None when fewer than two triplets of the batch are readable."""
    if len(batch.targets) < 2:
        return None
    drawn = np.random.SeedSequence([options.seed, step]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(drawn >> np.uint64(1)))
    device = extractor.device
    with torch.autocast(device.type, torch.bfloat16, enabled=options.autocast):
        queries = extractor.queries(batch.references, batch.texts, alpha)
        targets = extractor.targets(batch.targets)
    loss = contrastive_loss(queries, targets, torch.from_numpy(batch.target_ids).to(device), 1 / options.temperature)
    value = loss.item()
    if not math.isfinite(value):
        raise FashionNTMError(f"loss is {value} at step {step + 1}: lower extractor.fit.learning_rate")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], options.clip_norm)
    optimizer.step()
    return value


def cycle(step: int, total: int, warmup: float) -> float:
    """Return the learning-rate factor at ``step`` of ``total``: cosine warm-up, then cosine decay to zero."""
    top = warmup * total
    if step < top:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * (step + 1) / (top + 1))) / 2
    return (1 + math.cos(math.pi * (step - top) / max(1.0, total - top))) / 2


def _parts(count: int, per_epoch: int, options: FitOptions, done: int) -> Iterator[list[int]]:
    """Yield the triplet numbers of each batch from step ``done``, of nearly equal size; each triplet once per epoch."""
    for epoch in range(done // per_epoch, options.epochs):
        order = np.random.default_rng([options.seed, epoch]).permutation(count)
        parts = [part.tolist() for part in np.array_split(order, per_epoch)]
        yield from parts[done - epoch * per_epoch :] if epoch == done // per_epoch else parts


@torch.inference_mode()
def single_turn(
    extractor: Fittable, loader: Loader, dataset: Dataset, sessions: Sequence[Session], alpha: float, batch_size: int
) -> dict[str, float]:
    """Return R@K in percent over the triplets of ``sessions``, averaged over categories, and their count.

    Candidates: the category's gallery of the sessions' split, including the reference; ties count against the model.
    """
    extractor.network.eval()
    found = []
    triplets = triplets_of(sessions)
    for category in dict.fromkeys(t.category for t in triplets):
        mine = [t for t in triplets if t.category == category]
        gallery = dataset.gallery(category, sessions[0].split).images
        ids, rows = [], []
        for some, made in loader.images(list(dict.fromkeys([*gallery, *(t.target for t in mine)])), batch_size):
            ids += some
            rows.append(extractor.targets(made).float().cpu().numpy())
        place = {image: n for n, image in enumerate(ids)}
        mine = [t for t in mine if t.target in place and loader.image(t.reference) is not None]
        if not mine:
            continue
        parts = [range(start, min(start + batch_size, len(mine))) for start in range(0, len(mine), batch_size)]
        queries = [extractor.queries(b.references, b.texts, alpha).float().cpu() for b in loader.batches(mine, parts)]
        targets = np.array([place[t.target] for t in mine])
        found.append(ranks(torch.cat(queries).numpy(), np.concatenate(rows), targets))
    return mean_recalls(found, KS)
