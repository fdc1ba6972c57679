"""Which tokens of each KV head stay, and what stands for the others (``crates/scrimp-kv/src/compress`` in torch operations).

::

    budget of a KV head = sinks + recent + important + representatives
                          always kept       by score    KVCrush

Dropped tokens are sorted by the sides of six random hyperplanes that their keys are on, and by attention among those alike; the row is cut
into segments of about equal sums of ``sqrt(a)``; the token of a segment with the most attention stays, and ``0.75 ln(sum of a over the segment / a of
the token)`` is added to its score from then on.
"""

import functools
import math
from dataclasses import dataclass
from typing import Optional, Tuple

import torch
from torch import Tensor

from ._hash import planes

_BITS = 6
# The power of a segment's mass that its representative stands for.
_POWER = 0.75


@dataclass(frozen=True)
class Crush:
    """KVCrush's parameters.

    Args:
        share: part of the whole budget that goes to representatives; 0 is off.
        order: how dropped tokens are ordered before they are cut into segments: ``keys`` (what measures best), ``score`` or ``position``.
        mass: what a representative stands for: ``attention``, ``count`` (tokens of its segment) or ``none`` (itself, as in the paper).
    """

    share: float = 0.75
    order: str = "keys"
    mass: str = "attention"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie between 0 and 1, not {self.share}")
        if self.order not in ("keys", "score", "position"):
            raise ValueError(f"there is no order {self.order!r}; these are: keys, score, position")
        if self.mass not in ("attention", "count", "none"):
            raise ValueError(f"there is no mass {self.mass!r}; these are: attention, count, none")


@dataclass(frozen=True)
class Selection:
    """``indices`` of the tokens that stay, increasing, and the ``bias`` of their scores (float32): both ``[batch, kv_heads, budget]``."""

    indices: Tensor
    bias: Tensor

    def take(self, states: Tensor) -> Tensor:
        """The rows of keys or values, ``[batch, kv_heads, tokens, dim]``, that stay."""
        return states.gather(2, self.indices.unsqueeze(-1).expand(-1, -1, -1, states.shape[-1])).contiguous()


def recent_of(budget: int, recent: Optional[int]) -> int:
    """Last tokens that stay in any case of a budget of so many: ``recent``, or if nothing is said, a sixth of the budget."""
    return min(max(budget // 6, 32), 128) if recent is None else recent


def select(
    scores: Tensor, attention: Optional[Tensor], keys: Optional[Tensor], budget: int, crush: Crush = Crush(), *,
    sinks: int = 4, recent: Optional[int] = None, bias: Optional[Tensor] = None, layer: int = 0, seed: int = 0,
) -> Selection:
    """Chooses ``budget`` tokens of each KV head.

    Args:
        scores: importance by any policy, ``[batch, kv_heads, tokens]``.
        attention: what each token got from the queries that could see it, divided by their number: of the same shape. Not looked at by
            ``Crush(share=0)``.
        keys: ``[batch, kv_heads, tokens, dim]``, for ``order="keys"``.
        sinks, recent: first and last tokens that stay in any case; they count in the budget. ``recent=None``: a sixth of the budget, 32 to 128.
        bias: what is added to the tokens' scores already.
        layer, seed: for the random hyperplanes.
    """
    wanted = keys is not None and wants_keys(crush) and scores.shape[-1] > budget
    products = key_products(keys, layer, seed) if wanted else None
    return choose(scores, attention, products, budget, crush, sinks=sinks, recent=recent, bias=bias)


def wants_keys(crush: Crush) -> bool:
    """Whether the keys of tokens have a part in the choice of representatives."""
    return crush.share > 0 and crush.order == "keys"


def choose(
    scores: Tensor, attention: Optional[Tensor], products: Optional[Tensor], budget: int, crush: Crush, *,
    sinks: int, recent: Optional[int], bias: Optional[Tensor] = None,
) -> Selection:
    """As ``select``, with :func:`key_products` in the place of keys, layer and seed: layers can be stacked."""
    batch, heads, tokens = scores.shape
    if budget < 1:
        raise ValueError(f"a budget of {budget} tokens keeps nothing")
    old = torch.zeros(batch, heads, tokens, dtype=torch.float32, device=scores.device) if bias is None else bias
    if tokens <= budget:
        indices = torch.arange(tokens, device=scores.device).expand(batch, heads, -1)
        return Selection(indices, old)
    begin = min(sinks, tokens)
    end = max(tokens - recent_of(budget, recent), begin)
    free = max(budget - (tokens - (end - begin)), 0)
    representatives = min(math.floor(crush.share * budget + 0.5), free)
    important = free - representatives
    keep = torch.ones(batch, heads, tokens, dtype=torch.bool, device=scores.device)
    keep[..., begin:end] = False
    keep.scatter_(-1, _best(scores, begin, end, important), True)
    added = torch.zeros_like(old)
    if representatives:
        dropped = _places(~keep, end - begin - important)
        chosen, mass = _representatives(dropped, attention, products, representatives, crush)
        keep.scatter_(-1, chosen, True)
        added.scatter_(-1, chosen, mass)
    indices = _places(keep, tokens - (end - begin) + free)
    return Selection(indices, (old + added).gather(-1, indices))


def _places(marked: Tensor, n: int) -> Tensor:
    """Indices of the ``n`` tokens of each head that are marked, increasing. Unlike ``nonzero``, this does not wait for a GPU."""
    row = torch.arange(marked.shape[-1], device=marked.device).expand_as(marked)
    to = torch.where(marked, marked.cumsum(-1) - 1, n)
    return torch.empty(*marked.shape[:-1], n + 1, dtype=row.dtype, device=row.device).scatter_(-1, to, row)[..., :n]


def _best(scores: Tensor, begin: int, end: int, n: int) -> Tensor:
    """The ``n`` highest, the earlier one where two are equal."""
    middle = torch.where(scores.isnan(), -math.inf, scores)[..., begin:end]
    return middle.sort(dim=-1, descending=True, stable=True).indices[..., :n] + begin


def _representatives(
    order: Tensor, attention: Optional[Tensor], products: Optional[Tensor], n: int, crush: Crush
) -> Tuple[Tensor, Tensor]:
    """One token of each of ``n`` segments of the dropped ones, and the logarithm of what it stands for: ``[batch, kv_heads, n]``."""
    batch, heads, count = order.shape
    if attention is None:
        if crush.mass == "attention" or crush.order != "position":
            raise ValueError("this needs the attention of the tokens")
        a = torch.zeros(order.shape, dtype=torch.float32, device=order.device)
    else:
        a = attention.float().gather(-1, order)

    def rearrange(by: Tensor) -> None:
        nonlocal order, a
        order, a = order.gather(-1, by), a.gather(-1, by)

    if crush.order == "keys":
        if products is None:
            raise ValueError("order='keys' needs the keys")
        # By code, and by falling attention among those of one code: the bits of a float, as an integer that rises with it.
        bits = a.contiguous().view(torch.int32)
        rising = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
        rearrange(((_codes(products, order) << 33) - rising).sort(dim=-1, stable=True).indices)
    elif crush.order == "score":
        rearrange(a.sort(dim=-1, descending=True, stable=True).indices)

    # Ends of the segments, [batch, heads, n].
    parts = torch.arange(1, n + 1, device=order.device)
    if crush.mass == "attention":
        ends = _equal_sums(a.clamp_min(0).to(_exact(order.device)).sqrt(), parts)
    else:
        ends = (parts * count // n).expand(batch, heads, -1)
    segment = torch.searchsorted(ends.contiguous(), torch.arange(count, device=order.device).expand_as(order).contiguous(), right=True)
    if crush.mass != "attention":
        starts = torch.cat([torch.zeros_like(ends[..., :1]), ends[..., :-1]], -1)
        chosen = order.gather(-1, starts + (ends - starts) // 2)
        mass = (ends - starts).float().log() if crush.mass == "count" else torch.zeros(chosen.shape, dtype=torch.float32, device=order.device)
        return chosen, mass
    most = torch.full((batch, heads, n), -math.inf, dtype=torch.float32, device=order.device).scatter_reduce(-1, segment, a, "amax")
    # The first token of those with the most attention.
    candidates = torch.where(a == most.gather(-1, segment), order, torch.iinfo(torch.int64).max)
    chosen = torch.full((batch, heads, n), torch.iinfo(torch.int64).max, device=order.device)
    chosen = chosen.scatter_reduce(-1, segment, candidates, "amin")
    sums = torch.zeros(batch, heads, n, dtype=_exact(order.device), device=order.device).scatter_add(-1, segment, a.to(_exact(order.device)))
    ratio = sums / most
    # Where nothing was attended to, there is no ratio.
    usable = ratio.isfinite() & (ratio >= 1)
    return chosen, (_POWER * torch.where(usable, ratio, 1.0).log()).float()


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@functools.lru_cache(maxsize=1024)
def _sides(dim: int, seed: int, layer: int, device: torch.device) -> Tensor:
    """The hyperplanes, ``[dim, bits]``. Kept, because making them on a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(planes(dim, _BITS, seed, layer), dtype=torch.float32, device=device)


def key_products(keys: Tensor, layer: int, seed: int) -> Tensor:
    """How far the keys are from the hyperplanes of the layer, ``[batch, kv_heads, tokens, bits]``."""
    # Sides are 1 and -1, exact in any type; sums are taken in float32 inside the product.
    return keys @ _sides(keys.shape[-1], seed, layer, keys.device).to(keys.dtype)


def _codes(products: Tensor, order: Tensor) -> Tensor:
    """Which sides of the hyperplanes through their mean the keys of tokens are on, as a number."""
    products = products.gather(2, order.unsqueeze(-1).expand(-1, -1, -1, _BITS))
    sides_of = products > products.mean(dim=2, keepdim=True)
    return (sides_of * (1 << torch.arange(_BITS, device=order.device))).sum(-1)


def _equal_sums(weights: Tensor, parts: Tensor) -> Tensor:
    """Ends of ``n`` parts of a row with about equal sums, none of them empty."""
    n, length = parts.numel(), weights.shape[-1]
    sums = torch.nn.functional.pad(weights.cumsum(-1), (1, 0))
    ends = torch.searchsorted(sums, sums[..., -1:] * parts / n)
    # end[i] = clamp(end[i], end[i - 1] + 1, length - (n - i)), and the last one is the row's.
    slack = (ends - parts).clamp(0, length - n)
    slack[..., -1] = length - n
    return slack.cummax(-1).values + parts
