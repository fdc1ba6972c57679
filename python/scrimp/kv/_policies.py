"""Eviction policies: scores of tokens, ``[batch, kv_heads, tokens]``.

Each policy computes the score of the policy of the same name in ``scrimp-kv``.
"""

from typing import Callable, Dict

import torch
from torch import Tensor

from ._attention_scores import accumulated_scores

#: Queries of SnapKV's window, and neighboring tokens that are averaged.
_WINDOW, _KERNEL = 32, 7


def _snapkv(queries: Tensor, keys: Tensor, scaling: float, mean: Tensor) -> Tensor:
    """Attention of the last 32 queries, averaged over 7 neighboring tokens (arXiv 2404.14469)."""
    recent = accumulated_scores(queries[:, :, -_WINDOW:], keys, scaling)
    return torch.nn.functional.avg_pool1d(recent, _KERNEL, 1, _KERNEL // 2)


def _tova(queries: Tensor, keys: Tensor, scaling: float, mean: Tensor) -> Tensor:
    """Attention of the last query (arXiv 2401.06104)."""
    return accumulated_scores(queries[:, :, -1:], keys, scaling)


def _h2o(queries: Tensor, keys: Tensor, scaling: float, mean: Tensor) -> Tensor:
    """Attention of all queries that see the token, divided by their number (arXiv 2306.14048)."""
    return mean


def _knorm(queries: Tensor, keys: Tensor, scaling: float, mean: Tensor) -> Tensor:
    """Keys of low norm (arXiv 2406.11430)."""
    return -keys.float().norm(dim=-1)


def _streaming(queries: Tensor, keys: Tensor, scaling: float, mean: Tensor) -> Tensor:
    """The newest tokens (arXiv 2309.17453)."""
    return torch.arange(keys.shape[2], device=keys.device, dtype=torch.float32).expand(keys.shape[:3])


#: The policy whose scores are those of :func:`scrimp.kv._future.expected_max`.
EXPECTED_MAX = "expected-max"

#: ``policy(queries, keys, scaling, mean)`` by name. ``mean`` are the scores of :func:`mean_scores`.
POLICIES: Dict[str, Callable[[Tensor, Tensor, float, Tensor], Tensor]] = {
    "snapkv": _snapkv,
    "h2o": _h2o,
    "tova": _tova,
    "knorm": _knorm,
    "streaming": _streaming,
}
