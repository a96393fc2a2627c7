"""Diagnostics of the memories of a CM-NTM in training: row spread, attention entropy, gradients of the addressing.

With the public initialization all rows of a memory start equal. Content addressing then cannot distinguish them, and
its gradient is near zero until the writes have diverged. These quantities show when that happens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from manifests.schema import Training
from pipeline.training.data import SessionBatch, SessionFeatures
from pipeline.training.determinism import flushed_denormals, seeded
from pipeline.training.errors import TrainingError
from pipeline.training.losses import turnwise_cross_entropy
from pipeline.training.models._ntm import HEADS, READ, WRITE, Addressing, head_sizes
from pipeline.training.models.base import MemoryModel
from pipeline.training.models.cm_ntm import CMNTM

PAPER = Training()


def diagnose(
    model: MemoryModel, features: SessionFeatures, index: Tensor, training: Training = PAPER
) -> dict[str, Any]:
    """Compute diagnostics of ``model`` on the sessions ``index`` (int64 [B]).

    Weights, gradients and random states do not change. Repeated turns of short sessions are included. ``training``
    selects the differentiated loss.

    Returns:
        Plain numbers, ready for JSON:
        "slots": N.
        "row_spread": [C][T + 1], mean over sessions of ``row_spread`` before the first turn and after each turn.
        "read_entropy", "write_entropy": [C][T], mean over sessions of the entropy of the head's weights, in nats,
        between 0 (one slot) and ln N (uniform).
        "gradient": for each addressing parameter (key, strength, gate, shift, sharpening), [C], the norm of the loss
        gradient with respect to the weights of its output layer, both heads together; "addressing": the same for all
        of them together; "content": the same for erase and add, for comparison.

    Raises:
        TrainingError: a model without such memories, or a batch too small to train on.
    """
    if not isinstance(model, CMNTM):
        raise TrainingError(f"{model.name} has no addressed memory to diagnose; ask for cm_ntm or v_ntm")
    batch = features.batch(index)
    slots = model.stages[0].start.shape[1]
    with seeded(0, features.device), flushed_denormals():
        return {"slots": slots, **_memories(model, batch), "gradient": _gradients(model, batch, training)}


def row_spread(memory: Tensor) -> Tensor:
    """Measure how much the rows of a memory differ: [..., N, M] -> [...].

    Root mean square distance of the rows from their mean, divided by the root mean square norm of the rows: 0 for
    equal rows, 1 for rows that sum to zero, sqrt(1 - 1/N) for orthogonal rows of equal norm. 0 for a zero memory.
    """
    distance = (memory - memory.mean(-2, keepdim=True)).square().sum(-1).mean(-1).sqrt()
    norm = memory.square().sum(-1).mean(-1).sqrt()
    return torch.where(norm > 0, distance / norm.clamp_min(torch.finfo(memory.dtype).tiny), 0.0)


def entropy(weights: Tensor) -> Tensor:
    """Return the entropy of weights over slots, in nats: [..., N] -> [...], between 0 and ln N."""
    return torch.special.entr(weights).sum(-1).clamp_min(0.0)


@torch.no_grad()
def _memories(model: CMNTM, batch: SessionBatch) -> dict[str, list[list[float]]]:
    training = model.training
    model.eval()
    try:
        state = model.initial_state(len(batch.queries))
        states = [state.stages]
        for query in batch.queries.unbind(1):
            _, state = model.step(query, state)
            states.append(state.stages)
    finally:
        model.train(training)
    stages = list(zip(*states, strict=True))  # [C][T + 1]
    # In double precision, because the squares of the initial memory may underflow float32.
    return {
        "row_spread": [[float(row_spread(s.memory.double()).mean()) for s in turns] for turns in stages],
        "read_entropy": [[float(entropy(s.weights[:, READ]).mean()) for s in turns[1:]] for turns in stages],
        "write_entropy": [[float(entropy(s.weights[:, WRITE]).mean()) for s in turns[1:]] for turns in stages],
    }


def _gradients(model: CMNTM, batch: SessionBatch, training: Training) -> dict[str, list[float]]:
    """Return gradient norms in training mode, as in a step, on copies of the running statistics."""
    was = model.training
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    weights = [stage.heads.weight for stage in model.stages]
    try:
        predicted = functional_call(model.train(), buffers, (batch.queries, batch.lengths))
    finally:
        model.train(was)
    lengths = batch.lengths if training.padding == "mask" else None
    loss = turnwise_cross_entropy(predicted, batch.targets, lengths, training.scale)
    found: dict[str, list[float]] = {name: [] for name in (*Addressing._fields, "addressing", "content")}
    for stage, gradient in zip(model.stages, torch.autograd.grad(loss, weights), strict=True):
        own = HEADS * sum(head_sizes(stage.width))
        per_head = gradient[:own].double().unflatten(0, (HEADS, -1)).split(head_sizes(stage.width), dim=1)
        for name, part in zip(Addressing._fields, per_head, strict=True):
            found[name].append(float(part.norm()))
        found["addressing"].append(float(gradient[:own].double().norm()))
        found["content"].append(float(gradient[own:].double().norm()))
    return found
