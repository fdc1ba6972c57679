"""Selection with a budget per KV head, as AdaKV (arXiv 2407.11550) and KVzip (arXiv 2505.23416) assign them."""

import math
from typing import Any, Optional

import torch
from torch import Tensor

from ._select import Crush, Selection, select


def select_per_head(scores: Tensor, attention: Optional[Tensor], keys: Tensor, budgets: Tensor, crush: Crush, **more: Any) -> Selection:
    """As :func:`scrimp.kv.select`, with ``budgets[b, h]`` tokens for KV head ``h`` of sequence ``b``.

    Heads with fewer tokens than the largest budget are padded with token 0 at bias ``-inf``, which attention ignores.
    """
    batch, heads, _ = scores.shape
    longest = int(budgets.max())
    indices = torch.zeros(batch, heads, longest, dtype=torch.int64, device=scores.device)
    bias = torch.full((batch, heads, longest), -math.inf, dtype=torch.float32, device=scores.device)
    for b, row in enumerate(budgets.tolist()):
        for h, budget in enumerate(row):
            at = (slice(b, b + 1), slice(h, h + 1))
            one = select(scores[at], None if attention is None else attention[at], keys[at], budget, crush, **more)
            n = one.indices.shape[-1]
            indices[b, h, :n] = one.indices[0, 0]
            bias[b, h, :n] = one.bias[0, 0]
    return Selection(indices, bias)


def with_floor(budgets: Tensor, at_least: int) -> Tensor:
    """Budgets ``[batch, kv_heads]`` of at least ``at_least`` tokens. Larger budgets shrink in proportion, so that the total stays, where possible."""
    above = (budgets - at_least).clamp_min(0)
    total = above.sum(-1, keepdim=True)
    left = (budgets.sum(-1, keepdim=True) - at_least * budgets.shape[-1]).clamp_min(0)
    share = torch.where(total > 0, left / total.clamp_min(1), 0.0).clamp_max(1)
    return at_least + (above * share).floor().to(budgets.dtype)
