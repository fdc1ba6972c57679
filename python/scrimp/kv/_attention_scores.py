"""Accumulated attention scores: how much attention each token of a prompt receives."""

import functools
import importlib.util
import math
from typing import Optional, Tuple

import torch
from torch import Tensor

#: Queries whose attention matrix is in memory at a time.
_CHUNK = 128
#: Whether Triton is installed, which the GPU kernels need, and the types that they support.
_TRITON, _TYPES = importlib.util.find_spec("triton") is not None, (torch.float32, torch.float16, torch.bfloat16)


def accumulated_scores(queries: Tensor, keys: Tensor, scaling: float, positions: Optional[Tensor] = None) -> Tensor:
    """The attention of each key, summed over the queries and averaged over the query heads of its KV head: ``[batch, kv_heads, keys]``, float32.

    Args:
        queries: ``[batch, query_heads, q, dim]``.
        keys: ``[batch, kv_heads, keys, dim]``.
        positions: query ``i`` sees the keys up to ``positions[i]`` (increasing). By default the queries belong to the last ``q`` keys.
    """
    q, n = queries.shape[2], keys.shape[2]
    if positions is None:
        positions = torch.arange(n - q, n, device=keys.device)
    if keys.is_cuda and _TRITON and keys.dtype in _TYPES:
        from . import _attention_scores_cuda

        return _attention_scores_cuda.accumulated_scores(queries, keys, scaling, positions)
    return _in_chunks(queries, keys, scaling, positions)


def _in_chunks(queries: Tensor, keys: Tensor, scaling: float, positions: Tensor) -> Tensor:
    batch, heads, q, dim = queries.shape
    kv_heads, n = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    total = torch.zeros(batch * kv_heads, n, dtype=torch.float32, device=keys.device)
    grouped = queries.reshape(batch, kv_heads, group, q, dim)
    columns = keys.flatten(0, 1).transpose(1, 2)
    at = torch.arange(n, device=keys.device)
    for first in range(0, q, _CHUNK):
        part = grouped[:, :, :, first : first + _CHUNK]
        hidden = torch.zeros(part.shape[3], n, dtype=keys.dtype, device=keys.device)
        hidden = hidden.masked_fill_(at > positions[first : first + _CHUNK, None], -math.inf).repeat(group, 1)[None]
        # In the type of the keys, because memory traffic of the scores limits the speed.
        scores = torch.baddbmm(hidden, part.reshape(batch * kv_heads, -1, dim), columns, alpha=scaling).softmax(-1)
        total += scores.sum(1, dtype=torch.float32)
    return total.view(batch, kv_heads, n) / group


def mean_scores(queries: Tensor, keys: Tensor, scaling: float, limit: Optional[int]) -> Tensor:
    """As :func:`accumulated_scores`, divided by the number of queries that see the key.

    At most ``limit`` queries contribute, evenly spaced, the last one included; ``None``: all.
    """
    q, n = queries.shape[2], keys.shape[2]
    rows, positions, n_queries = _rows(q, n, limit, keys.device)
    if rows.numel() < q:
        queries = queries[:, :, rows]
    return accumulated_scores(queries, keys, scaling, positions) / n_queries


@functools.lru_cache(maxsize=4)
def _rows(q: int, n: int, limit: Optional[int], device: torch.device) -> Tuple[Tensor, Tensor, Tensor]:
    """The queries that contribute, their positions, and how many of them see each key (at least 1). All layers share the result."""
    with torch.inference_mode(False):
        rows = torch.arange(q, device=device)
        if limit is not None and q > limit:
            rows = q - 1 - (torch.arange(limit, device=device).flip(0) * q) // limit
        positions = rows + (n - q)
        before = torch.searchsorted(positions, torch.arange(n, device=device))
        return rows, positions, (rows.numel() - before).clamp_min(1)
