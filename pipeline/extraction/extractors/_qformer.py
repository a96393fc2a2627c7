"""BLIP-2's Q-Former as used by SPRC, with the parameter names of its public checkpoints (``Qformer.bert....``).

Learned query tokens and words attend to each other. Given an image, query tokens also attend to it and have a separate
feed-forward layer. Without an image, all tokens use the feed-forward layer of the words (SPRC's change to BLIP-2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

_EPS = 1e-12  # as in BERT


@dataclass(frozen=True)
class QFormerSizes:
    """Sizes of a Q-Former. ``every``: layers whose number it divides attend to the image (0: none)."""

    words: int
    positions: int
    width: int
    inner: int
    layers: int
    heads: int
    image_width: int
    every: int


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, source: int):
        super().__init__()
        self.heads = heads
        sources = {"query": width, "key": source, "value": source}
        self.add_module("self", nn.ModuleDict({name: nn.Linear(size, width) for name, size in sources.items()}))
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=_EPS)})

    def forward(self, states: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Return [n, T, width], attending to ``source`` [n, S, ...]; ``mask`` bool [n, S]: visible positions."""
        inputs = self.get_submodule("self")
        n = len(states)
        query, key, value = (
            inputs[name](x).view(n, x.shape[1], self.heads, -1).transpose(1, 2)  # type: ignore[index]
            for name, x in (("query", states), ("key", source), ("value", source))
        )
        seen = mask[:, None, None, :] if mask is not None else None
        made = scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2).flatten(2)
        return self.output["LayerNorm"](self.output["dense"](made) + states)


class _Layer(nn.Module):
    def __init__(self, sizes: QFormerSizes, number: int):
        super().__init__()
        self.attention = _Attention(sizes.width, sizes.heads, sizes.width)
        if sizes.every and number % sizes.every == 0:
            self.crossattention = _Attention(sizes.width, sizes.heads, sizes.image_width)
        for name in ("", "_query"):
            self.add_module("intermediate" + name, nn.ModuleDict({"dense": nn.Linear(sizes.width, sizes.inner)}))
            out = {"dense": nn.Linear(sizes.inner, sizes.width), "LayerNorm": nn.LayerNorm(sizes.width, eps=_EPS)}
            self.add_module("output" + name, nn.ModuleDict(out))

    def forward(self, states: Tensor, mask: Tensor, image: Tensor | None, queries: int) -> Tensor:
        states = self.attention(states, states, mask)
        if image is None:
            return self._feed(states, "")
        asked, words = states[:, :queries], states[:, queries:]
        if hasattr(self, "crossattention"):
            asked = self.crossattention(asked, image, None)
        parts = [self._feed(asked, "_query")] + ([self._feed(words, "")] if words.shape[1] else [])
        return torch.cat(parts, 1)

    def _feed(self, states: Tensor, name: str) -> Tensor:
        inner = gelu(self.get_submodule("intermediate" + name)["dense"](states))  # type: ignore[index]
        out = self.get_submodule("output" + name)
        return out["LayerNorm"](out["dense"](inner) + states)  # type: ignore[index]


class QFormer(nn.Module):
    def __init__(self, sizes: QFormerSizes):
        super().__init__()
        counts = {"word_embeddings": sizes.words, "position_embeddings": sizes.positions}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(n, sizes.width) for name, n in counts.items()})
        self.embeddings["LayerNorm"] = nn.LayerNorm(sizes.width, eps=_EPS)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(sizes, i) for i in range(sizes.layers))})

    def forward(self, queries: Tensor, image: Tensor | None, ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return [n, Q + L, width] for queries [n, Q, width], words (ids, mask int64 [n, L]) and image [n, P, ...]."""
        states, seen = queries, torch.ones(queries.shape[:2], dtype=torch.bool, device=queries.device)
        if ids is not None and mask is not None:
            place = torch.arange(ids.shape[1], device=ids.device)
            words = self.embeddings["word_embeddings"](ids) + self.embeddings["position_embeddings"](place)
            states, seen = torch.cat([queries, words], 1), torch.cat([seen, mask.bool()], 1)
        states = self.embeddings["LayerNorm"](states)
        for layer in self.encoder["layer"].children():
            states = layer(states, seen, image, queries.shape[1])
        return states


def sizes_of(weights: dict[str, Tensor], heads: int) -> QFormerSizes:
    """Return the sizes of the Q-Former with these ``weights`` (names from ``embeddings....``). Raises KeyError."""
    words, width = weights["embeddings.word_embeddings.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    crossed = [i for i in range(layers) if f"encoder.layer.{i}.crossattention.self.key.weight" in weights]
    positions = len(weights["embeddings.position_embeddings.weight"])
    inner = len(weights["encoder.layer.0.intermediate.dense.weight"])
    image_width = weights["encoder.layer.0.crossattention.self.key.weight"].shape[1]
    every = crossed[1] if len(crossed) > 1 else layers
    return QFormerSizes(words, positions, width, inner, layers, heads, image_width, every)
