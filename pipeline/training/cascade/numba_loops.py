"""Compiled loops (numba) for the per-session operations of a turn: addressing, reading and writing, with backward.

A session's memory is traversed once, while it is in the processor's cache; torch traverses the memories of all sessions
once per operation. ``cell.py`` has the plain form of each function under the same name, and tests compare the two. All
arrays are contiguous; shapes as in ``saved_activations.py``. Sums may be reordered; NaN and infinity are preserved.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numba import njit
from numba.core import event

from pipeline.training.cascade.cell import SOFTPLUS
from pipeline.training.cascade.parameters import SCALARS
from pipeline.training.models._ntm import NORM_FLOOR

LINEAR_FROM = SOFTPLUS[1]
compiled: Any = njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


class _Announced(event.Listener):
    """Report once that these loops are being compiled; loops cached by an earlier process are not compiled again."""

    said = False

    def on_start(self, event: Any) -> None:
        if not self.said and event.data["dispatcher"].py_func.__module__ == __name__:
            self.said = True
            print("backend numba: compiling its loops for this processor, once, some 20 s", file=sys.stderr, flush=True)

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Announced())


@compiled
def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@compiled
def _softplus(x: float) -> float:
    return x if x > LINEAR_FROM else math.log1p(math.exp(x))


@compiled
def _softplus_slope(x: float) -> float:
    return 1.0 if x > LINEAR_FROM else _sigmoid(x)


@compiled
def _softmax(x) -> None:
    highest, total = x[0], x.dtype.type(0)
    for i in range(1, len(x)):
        highest = max(highest, x[i])
    for i in range(len(x)):
        x[i] = math.exp(x[i] - highest)
        total += x[i]
    for i in range(len(x)):
        x[i] /= total


@compiled
def _of_softmax(gradient, output) -> None:
    """Replace ``gradient`` of a softmax's ``output`` by that of its input."""
    total = 0.0
    for i in range(len(output)):
        total += gradient[i] * output[i]
    for i in range(len(output)):
        gradient[i] = output[i] * (gradient[i] - total)


@compiled
def _norm(x) -> float:
    total = x.dtype.type(0)
    for m in range(len(x)):
        total += x[m] * x[m]
    return max(math.sqrt(total), NORM_FLOOR)


@compiled
def _norm_slope(norm: float) -> float:
    return 0.0 if norm <= NORM_FLOOR else -1 / (norm * norm)


@compiled
def _address(raw, cosines, alike: bool, previous, room) -> None:
    """Compute the addressing weights of a head from its raw scalars.

    Writes to the rows of ``room``: content weights, interpolated, shifted and final weights, and the three shifts.
    ``alike``: all rows are equal, and the cosines are not read.
    """
    slots = len(previous)
    content, mixed, shifted, weights = room[0, :slots], room[1, :slots], room[2, :slots], room[3, :slots]
    strength, gate, sharpening = _softplus(raw[0]), _sigmoid(raw[1]), 1 + _softplus(raw[5])
    for i in range(slots):
        content[i] = 1 / slots if alike else strength * cosines[i]
    if not alike:
        _softmax(content)
    shift = room[4, :3]
    for j in range(3):
        shift[j] = raw[2 + j]
    _softmax(shift)
    for i in range(slots):
        mixed[i] = previous[i] + gate * (content[i] - previous[i])
    for i in range(slots):
        shifted[i] = shift[0] * mixed[i - 1] + shift[1] * mixed[i] + shift[2] * mixed[(i + 1) % slots]
        weights[i] = sharpening * math.log(max(shifted[i], np.finfo(shifted.dtype).tiny))
    _softmax(weights)


@compiled
def _address_backward(d_weights, raw, cosines, alike: bool, previous, room, d_raw, d_previous, d_cosines) -> None:
    """Backward of ``_address``, with its ``room``. Overwrites ``d_weights``, and writes the other three gradients."""
    slots = len(previous)
    content, mixed, shifted, weights = room[0, :slots], room[1, :slots], room[2, :slots], room[3, :slots]
    strength, gate, sharpening = _softplus(raw[0]), _sigmoid(raw[1]), 1 + _softplus(raw[5])
    shift = room[4, :3]
    tiny = np.finfo(shifted.dtype).tiny
    _of_softmax(d_weights, weights)
    d_sharpening = 0.0
    for i in range(slots):
        d_sharpening += d_weights[i] * math.log(max(shifted[i], tiny))
        d_weights[i] = 0 if shifted[i] < tiny else d_weights[i] * sharpening / shifted[i]
    d_shift, d_gate = d_raw[2:5], 0.0
    for j in range(3):
        d_shift[j] = 0
    for i in range(slots):
        after = (i + 1) % slots
        d_shift[0] += mixed[i - 1] * d_weights[i]
        d_shift[1] += mixed[i] * d_weights[i]
        d_shift[2] += mixed[after] * d_weights[i]
        d_mixed = shift[2] * d_weights[i - 1] + shift[1] * d_weights[i] + shift[0] * d_weights[after]
        d_gate += d_mixed * (content[i] - previous[i])
        d_cosines[i] = d_mixed * gate  # gradient of the content weights, converted below
        d_previous[i] = d_mixed - d_cosines[i]
    _of_softmax(d_shift, shift)
    d_raw[0], d_raw[1], d_raw[5] = 0, d_gate * gate * (1 - gate), d_sharpening * _softplus_slope(raw[5])
    if not alike:
        _of_softmax(d_cosines, content)
        d_strength = 0.0
        for i in range(slots):
            d_strength += d_cosines[i] * cosines[i]
            d_cosines[i] *= strength
        d_raw[0] = d_strength * _softplus_slope(raw[0])


@compiled
def _cosines(memory, norms, key, out) -> None:
    """Compute the cosine of the key with each row: [N, M], [N], [M] -> ``out`` [N]."""
    key_norm = _norm(key)
    for i in range(len(norms)):
        total, row = key.dtype.type(0), memory[i]
        for m in range(len(key)):
            total += key[m] * row[m]
        out[i] = total / (key_norm * norms[i])


@compiled
def _key_backward(d_cosines, cosines, memory, norms, key, d_key, dots, pulls) -> None:
    """Write the gradient of the key [M], and ``HeadGradients.dots`` and ``.pull`` [N]."""
    key_norm, key_pull = _norm(key), 0.0
    for i in range(len(norms)):
        dots[i], pulls[i] = d_cosines[i] / (key_norm * norms[i]), d_cosines[i] * cosines[i]
        key_pull += pulls[i]
    pull = key.dtype.type(key_pull * _norm_slope(key_norm))
    for m in range(len(key)):
        d_key[m] = pull * key[m]
    for i in range(len(norms)):
        dot, row = dots[i], memory[i]
        for m in range(len(key)):
            d_key[m] += dot * row[m]


@compiled
def read(memory, norms, states, raws, previous, cosines, weights, c: int, n: int) -> None:
    """Address and read with the read heads of stage ``c`` in turn ``n``; write to ``states`` [K, C, T + 1, B, S].

    memory: [K, C, B, N, M]; norms, previous, cosines, weights: [K, C, B, N]; raws: [K, C, T, B, M + 6].
    """
    runs, _, batch, slots, width = memory.shape
    room = np.empty((5, max(3, slots)), memory.dtype)
    for k, b in np.ndindex(runs, batch):
        raw, rows, out = raws[k, c, n, b], memory[k, c, b], states[k, c, n + 1, b]
        _cosines(rows, norms[k, c, b], raw[:width], cosines[k, c, b])
        _address(raw[width:], cosines[k, c, b], False, previous[k, c, b], room)
        for m in range(width):
            out[m] = 0
        for i in range(slots):
            weight, row = room[3, i], rows[i]
            weights[k, c, b, i] = weight
            for m in range(width):
                out[m] += weight * row[m]


@compiled
def read_backward(
    memory, norms, raws, previous, cosines, d_read, d_weights, d_raws, d_previous, dots, pulls, c: int, n: int
) -> None:
    """Backward of ``read``; d_read: [K, C, B, M]; overwrites d_weights [K, C, B, N], the weights' other gradients."""
    runs, _, batch, slots, width = memory.shape
    room, d_cosines = np.empty((5, max(3, slots)), memory.dtype), np.empty(slots, memory.dtype)
    for k, b in np.ndindex(runs, batch):
        raw, d_raw, rows, gradient = raws[k, c, n, b], d_raws[k, c, n, b], memory[k, c, b], d_read[k, c, b]
        found, at = cosines[k, c, b], d_weights[k, c, b]
        before, d_before = previous[k, c, b], d_previous[k, c, b]
        _address(raw[width:], found, False, before, room)
        for i in range(slots):
            total, row = gradient.dtype.type(0), rows[i]
            for m in range(width):
                total += gradient[m] * row[m]
            at[i] += total
        _address_backward(at, raw[width:], found, False, before, room, d_raw[width:], d_before, d_cosines)
        key, d_key = raw[:width], d_raw[:width]
        _key_backward(d_cosines, found, rows, norms[k, c, b], key, d_key, dots[k, c, b], pulls[k, c, b])


@compiled
def write(memory, norms, raws, previous, cosines, weights, new, new_norms, alike: bool) -> None:
    """Address and write with the write heads of all stages: new memories [K, C, B, N, M], their norms [K, C, B, N].

    raws: [K, C, B, ..], scalars, erase (after its sigmoid), add, key. ``alike``: the memory is one row for all,
    [K, C, 1, 1, M]; there is no key, and norms and cosines are not used.
    """
    runs, stages, batch, slots, width = new.shape
    room = np.empty((5, max(3, slots)), new.dtype)
    for k, c, b in np.ndindex(runs, stages, batch):
        raw, rows = raws[k, c, b], memory[k, c, 0 if alike else b]
        erase, add = raw[SCALARS : SCALARS + width], raw[SCALARS + width : SCALARS + 2 * width]
        if not alike:
            _cosines(rows, norms[k, c, b], raw[SCALARS + 2 * width :], cosines[k, c, b])
        _address(raw, cosines[k, c, b], alike, previous[k, c, b], room)
        for i in range(slots):
            weight, row, out = room[3, i], rows[0 if alike else i], new[k, c, b, i]
            weights[k, c, b, i] = weight
            for m in range(width):
                out[m] = row[m] + weight * (add[m] - erase[m] * row[m])
            new_norms[k, c, b, i] = _norm(out)


@compiled
def write_backward(
    memory, norms, raws, previous, cosines, d_new, d_weights, d_raws, d_previous, dots, pulls, n: int, alike: bool
) -> None:
    """Write turn ``n`` of d_raws [K, C, T - 1, B, ..]; d_new: [K, C, B, N, M]; d_weights as in ``read_backward``."""
    runs, stages, batch, slots, width = d_new.shape
    room, d_cosines = np.empty((5, max(3, slots)), d_new.dtype), np.empty(slots, d_new.dtype)
    for k, c, b in np.ndindex(runs, stages, batch):
        raw, d_raw, rows = raws[k, c, b], d_raws[k, c, n, b], memory[k, c, 0 if alike else b]
        found, at = cosines[k, c, b], d_weights[k, c, b]
        before, d_before = previous[k, c, b], d_previous[k, c, b]
        erase, add = raw[SCALARS : SCALARS + width], raw[SCALARS + width : SCALARS + 2 * width]
        d_erase, d_add = d_raw[SCALARS : SCALARS + width], d_raw[SCALARS + width : SCALARS + 2 * width]
        _address(raw, found, alike, before, room)
        for m in range(width):
            d_erase[m], d_add[m] = 0, 0
        for i in range(slots):
            weight, row, gradient = room[3, i], rows[0 if alike else i], d_new[k, c, b, i]
            total = gradient.dtype.type(0)
            for m in range(width):  # three loops: possible aliasing prevents vectorization of a single loop
                total += gradient[m] * (add[m] - erase[m] * row[m])
            for m in range(width):
                d_erase[m] -= weight * (gradient[m] * row[m])
            for m in range(width):
                d_add[m] += weight * gradient[m]
            at[i] += total
        for m in range(width):
            d_erase[m] *= erase[m] - erase[m] * erase[m]
        _address_backward(at, raw, found, alike, before, room, d_raw[:SCALARS], d_before, d_cosines)
        if not alike:
            key, d_key = raw[SCALARS + 2 * width :], d_raw[SCALARS + 2 * width :]
            _key_backward(d_cosines, found, rows, norms[k, c, b], key, d_key, dots[k, c, b], pulls[k, c, b])


@compiled
def gather(
    memory, norms, raws, weights, dots, pulls, d_read, d_memory, writes, write_at, write_dots, write_pulls, n, wrote
) -> None:
    """Replace ``d_memory``, the gradient of the memories after turn ``n``, by that of the memories before it.

    weights, dots, pulls: [K, C, B, N], of the read heads; writes: [K, C, B, 3 M + 6], the write heads' raw outputs;
    write_at: their weights. The arguments of the write heads are only read if the turn ``wrote``.
    """
    runs, stages, batch, slots, width = d_memory.shape
    for k, c, b in np.ndindex(runs, stages, batch):
        key, gradient, wrote_with = raws[k, c, n, b], d_read[k, c, b], writes[k, c, b]
        erase, write_key = wrote_with[SCALARS : SCALARS + width], wrote_with[SCALARS + 2 * width :]
        for i in range(slots):
            total, row, pull = d_memory[k, c, b, i], memory[k, c, b, i], pulls[k, c, b, i]
            weight, dot = weights[k, c, b, i], dots[k, c, b, i]
            if wrote:
                write_weight, write_dot = write_at[k, c, b, i], write_dots[k, c, b, i]
                slope = gradient.dtype.type((pull + write_pulls[k, c, b, i]) * _norm_slope(norms[k, c, b, i]))
                for m in range(width):
                    kept = total[m] - write_weight * erase[m] * total[m]
                    total[m] = kept + weight * gradient[m] + dot * key[m] + write_dot * write_key[m] + slope * row[m]
            else:
                slope = gradient.dtype.type(pull * _norm_slope(norms[k, c, b, i]))
                for m in range(width):
                    total[m] = weight * gradient[m] + dot * key[m] + slope * row[m]
