"""The selection of one layer in torch operations, as ``crates/scrimp-kv/src/compress`` makes it.

::

    budget of a KV head = sinks + recent + important + representatives
                          reserved         by score    KVCrush

Dropped tokens are sorted by the sides of six random hyperplanes on which their keys are, and then by attention ``a``. The row is cut into
segments with about equal sums of ``sqrt(a)``. The token with the most attention represents its segment, and attention adds the bias
``0.75 ln(sum of a over the segment / a of the token)`` to its scores.
"""

import functools
import math
from dataclasses import dataclass
from typing import Optional, Tuple

import torch
from torch import Tensor

from ._hash import planes

#: Hyperplanes.
_BITS = 6
#: The power of a segment's mass that its representative receives.
_POWER = 0.75
#: The masses of a representative.
_MASSES = ("none", "attention")


@dataclass(frozen=True)
class Crush:
    """KVCrush's parameters.

    Args:
        share: share of the whole budget that goes to representatives; 0 turns KVCrush off.
        mass: the attention that a representative receives: ``attention`` (of its segment) or ``none`` (its own only, as in the paper).
    """

    share: float = 0.75
    mass: str = "attention"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie between 0 and 1, not {self.share}")
        if self.mass not in _MASSES:
            raise ValueError(f"there is no mass {self.mass!r}; there are {', '.join(_MASSES)}")

    @property
    def enabled(self) -> bool:
        """Whether there are representatives. Their selection needs the attention and the keys of the tokens."""
        return self.share > 0

    @property
    def has_bias(self) -> bool:
        """Whether representatives have a bias."""
        return self.enabled and self.mass != "none"


@dataclass(frozen=True)
class Selection:
    """The tokens that a layer keeps: their ``indices``, increasing, and the ``bias`` that attention adds to their scores (float32), both
    ``[batch, kv_heads, budget]``."""

    indices: Tensor
    bias: Tensor

    def take(self, states: Tensor) -> Tensor:
        """The kept rows of keys or values (``[batch, kv_heads, tokens, dim]``)."""
        return states.gather(2, self.indices.unsqueeze(-1).expand(-1, -1, -1, states.shape[-1])).contiguous()


def recent_of(budget: int, recent: Optional[int]) -> int:
    """The recent tokens of a budget: ``recent``, or by default a sixth of the budget, from 32 to 128."""
    return min(max(budget // 6, 32), 128) if recent is None else recent


def check_reserved(sinks: int, recent: Optional[int]) -> None:
    """Raises an error for negative numbers of tokens."""
    for name, value in (("sinks", sinks), ("recent", recent)):
        if value is not None and value < 0:
            raise ValueError(f"{name} must be 0 or more, not {value}")


def select(
    scores: Tensor, attention: Optional[Tensor], keys: Optional[Tensor], budget: int, crush: Crush = Crush(), *,
    sinks: int = 4, recent: Optional[int] = None, bias: Optional[Tensor] = None, layer: int = 0, seed: int = 0,
) -> Selection:
    """Selects ``budget`` tokens of each KV head.

    Args:
        scores: the policy's scores, ``[batch, kv_heads, tokens]``.
        attention: the mean attention of the queries that see the token, of the same shape. Unused with ``Crush(share=0)``.
        keys: ``[batch, kv_heads, tokens, dim]``. Unused with ``Crush(share=0)``.
        sinks, recent: first and last tokens that are always kept; they count in the budget. ``recent=None``: a sixth of the budget, 32 to 128.
        bias: the biases that the tokens have already.
        layer, seed: the random hyperplanes depend on them.
    """
    needed = keys is not None and crush.enabled and scores.shape[-1] > budget
    products = key_products(keys, layer, seed) if needed else None
    return select_by_products(scores, attention, products, budget, crush, sinks=sinks, recent=recent, bias=bias)


def select_by_products(
    scores: Tensor, attention: Optional[Tensor], products: Optional[Tensor], budget: int, crush: Crush, *,
    sinks: int, recent: Optional[int], bias: Optional[Tensor] = None,
) -> Selection:
    """As :func:`select`, with :func:`key_products` instead of keys, layer and seed, so that layers can be stacked in the batch."""
    batch, heads, tokens = scores.shape
    check_reserved(sinks, recent)
    if budget < 1:
        raise ValueError(f"a budget of {budget} tokens keeps nothing")
    old = torch.zeros(batch, heads, tokens, dtype=torch.float32, device=scores.device) if bias is None else bias
    if tokens <= budget:
        indices = torch.arange(tokens, device=scores.device).expand(batch, heads, -1)
        return Selection(indices, old)
    begin = min(sinks, tokens)
    end = max(tokens - recent_of(budget, recent), begin)
    rest = max(budget - (tokens - (end - begin)), 0)
    representatives = min(math.floor(crush.share * budget + 0.5), rest)
    important = rest - representatives
    keep = torch.ones(batch, heads, tokens, dtype=torch.bool, device=scores.device)
    keep[..., begin:end] = False
    keep.scatter_(-1, _best(scores, begin, end, important), True)
    added = torch.zeros_like(old)
    if representatives:
        dropped = _indices(~keep, end - begin - important)
        chosen, mass = _representatives(dropped, attention, products, representatives, crush)
        keep.scatter_(-1, chosen, True)
        added.scatter_(-1, chosen, mass)
    indices = _indices(keep, tokens - (end - begin) + rest)
    return Selection(indices, (old + added).gather(-1, indices))


def _indices(marked: Tensor, n: int) -> Tensor:
    """The indices of the ``n`` marked tokens of each head, increasing. Unlike ``nonzero``, this does not synchronize with a GPU."""
    row = torch.arange(marked.shape[-1], device=marked.device).expand_as(marked)
    to = torch.where(marked, marked.cumsum(-1) - 1, n)
    return torch.empty(*marked.shape[:-1], n + 1, dtype=row.dtype, device=row.device).scatter_(-1, to, row)[..., :n]


def _best(scores: Tensor, begin: int, end: int, n: int) -> Tensor:
    """The ``n`` tokens of ``begin..end`` with the highest scores, the earlier one among equal scores."""
    candidates = torch.where(scores.isnan(), -math.inf, scores)[..., begin:end]
    return candidates.sort(dim=-1, descending=True, stable=True).indices[..., :n] + begin


def _representatives(
    order: Tensor, attention: Optional[Tensor], products: Optional[Tensor], n: int, crush: Crush
) -> Tuple[Tensor, Tensor]:
    """The representatives of ``n`` segments of the dropped tokens ``order``, and their biases: ``[batch, kv_heads, n]``."""
    batch, heads, count = order.shape
    if attention is None or products is None:
        raise ValueError("representatives need the attention and the keys of the tokens")
    a = attention.float().gather(-1, order)
    # By code, and by falling attention among tokens with the same code: the bits of a float as an integer that rises with it.
    bits = a.contiguous().view(torch.int32)
    rising = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    by = ((_codes(products, order) << 33) - rising).sort(dim=-1, stable=True).indices
    order, a = order.gather(-1, by), a.gather(-1, by)

    parts = torch.arange(1, n + 1, device=order.device)
    if crush.mass == "none":
        # The middle tokens of segments of equal length.
        starts, ends = (parts - 1) * count // n, parts * count // n
        chosen = order[..., starts + (ends - starts) // 2]
        return chosen, torch.zeros(chosen.shape, dtype=torch.float32, device=order.device)
    # The end of each segment, [batch, heads, n], and the segment of each token.
    ends = _equal_sums(a.clamp_min(0).to(_exact(order.device)).sqrt(), parts)
    segment = torch.searchsorted(ends.contiguous(), torch.arange(count, device=order.device).expand_as(order).contiguous(), right=True)
    most = torch.full((batch, heads, n), -math.inf, dtype=torch.float32, device=order.device).scatter_reduce(-1, segment, a, "amax")
    # The first one of the tokens with the most attention.
    candidates = torch.where(a == most.gather(-1, segment), order, torch.iinfo(torch.int64).max)
    chosen = torch.full((batch, heads, n), torch.iinfo(torch.int64).max, device=order.device)
    chosen = chosen.scatter_reduce(-1, segment, candidates, "amin")
    sums = torch.zeros(batch, heads, n, dtype=_exact(order.device), device=order.device).scatter_add(-1, segment, a.to(_exact(order.device)))
    ratio = sums / most
    # The ratio is not finite where the representative received no attention.
    usable = ratio.isfinite() & (ratio >= 1)
    return chosen, (_POWER * torch.where(usable, ratio, 1.0).log()).float()


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@functools.lru_cache(maxsize=1024)
def _sides(dim: int, seed: int, layer: int, device: torch.device) -> Tensor:
    """The hyperplanes, ``[dim, bits]``, cached, because creating them on a GPU synchronizes with it."""
    with torch.inference_mode(False):
        return torch.tensor(planes(dim, _BITS, seed, layer), dtype=torch.float32, device=device)


def key_products(keys: Tensor, layer: int, seed: int) -> Tensor:
    """The products of keys with the layer's hyperplanes, ``[batch, kv_heads, tokens, bits]``."""
    # Signs are exact in any type, and the product accumulates in float32.
    return keys @ _sides(keys.shape[-1], seed, layer, keys.device).to(keys.dtype)


def _codes(products: Tensor, order: Tensor) -> Tensor:
    """The sides of the hyperplanes through the mean on which the keys of the tokens are, as a number."""
    products = products.gather(2, order.unsqueeze(-1).expand(-1, -1, -1, _BITS))
    sides_of = products > products.mean(dim=2, keepdim=True)
    return (sides_of * (1 << torch.arange(_BITS, device=order.device))).sum(-1)


def _equal_sums(weights: Tensor, parts: Tensor) -> Tensor:
    """The ends of ``n`` parts of a row with about equal sums. No part is empty."""
    n, length = parts.numel(), weights.shape[-1]
    sums = torch.nn.functional.pad(weights.cumsum(-1), (1, 0))
    ends = torch.searchsorted(sums, sums[..., -1:] * parts / n)
    # end[i] = clamp(end[i], end[i - 1] + 1, length - (n - i)); the last end is the length.
    slack = (ends - parts).clamp(0, length - n)
    slack[..., -1] = length - n
    return slack.cummax(-1).values + parts
