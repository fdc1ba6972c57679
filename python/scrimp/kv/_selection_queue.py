"""A queue of layers whose tokens are not selected yet, so that several layers are selected together.

A selection is about 70 small operations. On a GPU their launches take most of the time, and four layers need as many launches as one. Layers that
share one budget wait for the last one.
"""

from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor

from ._select import Selection, key_products, recent_of, select_by_products


class SelectionQueue:
    """Layers of a cache that await selection. Each of up to ``limit`` layers holds all tokens of its prompt meanwhile."""

    def __init__(self, owner: Any, limit: Optional[int]) -> None:
        self.owner, self.limit = owner, limit
        self.layers: List[Tuple[Any, Tensor, Optional[Tensor], Optional[Tensor]]] = []

    def add(self, layer: Any, scores: Tensor, attention: Optional[Tensor], keys: Tensor) -> None:
        """Adds a layer with the scores and the attention of its tokens, ``[batch, kv_heads, tokens]``."""
        if self.layers and self.layers[0][1].shape != scores.shape:
            self.flush()
        owner = self.owner
        products = key_products(keys, layer.index, owner.seed) if owner.crush.enabled else None
        self.layers.append((layer, scores, attention, products))
        if not owner.shares_layers and len(self.layers) >= (self.limit or (4 if keys.is_cuda else 1)):
            self.flush()

    def flush(self) -> None:
        """Selects the tokens of all layers in the queue."""
        layers, self.layers = self.layers, []
        if not layers:
            return
        owner, batch = self.owner, layers[0][1].shape[0]
        if owner.shares_layers:
            return self._select_sharing(layers)

        def stacked(part: int) -> Optional[Tensor]:
            tensors = [layer[part] for layer in layers]
            return None if tensors[0] is None else tensors[0] if len(tensors) == 1 else torch.cat(tensors)

        scores = stacked(1)
        budget = owner.tokens(scores.shape[2])
        selected = select_by_products(scores, stacked(2), stacked(3), budget, owner.crush, sinks=owner.sinks, recent=owner.recent)
        for i, (layer, *_) in enumerate(layers):
            rows = slice(i * batch, (i + 1) * batch)
            layer.keep(Selection(selected.indices[rows], selected.bias[rows]))

    def _select_sharing(self, layers: List[Tuple[Any, Tensor, Optional[Tensor], Optional[Tensor]]]) -> None:
        """Selects the tokens of all layers of a prompt, which share one budget."""
        owner, tokens = self.owner, layers[0][1].shape[2]
        budget = owner.tokens(tokens)
        recent = recent_of(budget, owner.recent)
        budgets = shared_budgets([scores for _, scores, *_ in layers], budget, owner.sinks, recent)
        for (layer, scores, attention, products), n in zip(layers, budgets):
            layer.keep(select_by_products(scores, attention, products, n, owner.crush, sinks=owner.sinks, recent=recent))


def shared_budgets(scores: List[Tensor], budget: int, sinks: int, recent: int) -> List[int]:
    """Tokens per KV head of each layer, ``budget`` on average: a layer gets as many as it has among the best scores of all layers."""
    heads, tokens = scores[0].shape[0] * scores[0].shape[1], scores[0].shape[2]
    begin = min(sinks, tokens)
    end = max(tokens - recent, begin)
    reserved = tokens - (end - begin)
    free = max(min(budget, tokens) - reserved, 0) * len(scores)
    middle = torch.stack([part[..., begin:end].flatten() for part in scores]).nan_to_num(-1.0)
    best = middle.flatten().topk(free * heads).indices // middle.shape[1]
    wanted = torch.bincount(best, minlength=len(scores)).cpu().double() / heads
    counts = wanted.floor().long()
    # What rounding leaves goes to the layers that it costs most.
    counts[(wanted - counts).argsort(descending=True, stable=True)[: free - int(counts.sum())]] += 1
    return [reserved + int(count) for count in counts]
