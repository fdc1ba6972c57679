"""Layers that have read a prompt and wait for the choice of their tokens, which is made for some of them together.

A choice is some seventy small operations, whose start is most of their time on a GPU; for four layers it takes as many.
"""

from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor

from ._select import Selection, choose, key_products, wants_keys


class Waiting:
    """Layers of a cache whose tokens are not chosen yet: as many as ``most`` hold all tokens of a prompt meanwhile."""

    def __init__(self, owner: Any, most: Optional[int]) -> None:
        self.owner, self.most = owner, most
        self.layers: List[Tuple[Any, Tensor, Optional[Tensor], Optional[Tensor]]] = []

    def add(self, layer: Any, scores: Tensor, mean: Optional[Tensor], keys: Tensor) -> None:
        """``layer`` waits, whose tokens have these scores and this attention, ``[batch, kv_heads, tokens]``."""
        if self.layers and self.layers[0][1].shape != scores.shape:
            self.end()
        owner = self.owner
        products = key_products(keys, layer.index, owner.seed) if wants_keys(owner.crush) else None
        self.layers.append((layer, scores, mean, products))
        if len(self.layers) >= (self.most or (4 if keys.is_cuda else 1)):
            self.end()

    def end(self) -> None:
        """Chooses for all that wait."""
        layers, self.layers = self.layers, []
        if not layers:
            return
        owner, batch = self.owner, layers[0][1].shape[0]

        def stacked(part: int) -> Optional[Tensor]:
            tensors = [layer[part] for layer in layers]
            return None if tensors[0] is None else tensors[0] if len(tensors) == 1 else torch.cat(tensors)

        scores = stacked(1)
        budget = owner.tokens(scores.shape[2])
        chosen = choose(scores, stacked(2), stacked(3), budget, owner.crush, sinks=owner.sinks, recent=owner.recent)
        for i, (layer, *_) in enumerate(layers):
            rows = slice(i * batch, (i + 1) * batch)
            layer.keep(Selection(chosen.indices[rows], chosen.bias[rows]))
