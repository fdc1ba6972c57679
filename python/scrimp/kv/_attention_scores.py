"""How much attention the tokens of a prompt get."""

import functools
import importlib.util
import math
from typing import Optional, Tuple

import torch
from torch import Tensor

#: Queries whose scores are held at once.
_CHUNK = 128
#: Whether there is Triton, which the kernels for GPUs are written in, and the types that they take.
_TRITON, _TYPES = importlib.util.find_spec("triton") is not None, (torch.float32, torch.float16, torch.bfloat16)


def attention_received(queries: Tensor, keys: Tensor, scaling: float, positions: Optional[Tensor] = None) -> Tensor:
    """The attention that each key gets, summed over the given queries and averaged over the query heads of its KV head, ``[batch, kv_heads, keys]``.

    ``queries`` are ``[batch, query_heads, q, dim]``; query ``i`` sees keys up to ``positions[i]`` (increasing), by default the last ``q`` ones of the
    keys' positions.
    """
    q, n = queries.shape[2], keys.shape[2]
    if positions is None:
        positions = torch.arange(n - q, n, device=keys.device)
    if keys.is_cuda and _TRITON and keys.dtype in _TYPES:
        from . import _attention_scores_cuda

        return _attention_scores_cuda.attention_received(queries, keys, scaling, positions)
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
        # In the type of the keys: the time of this is the traffic of the scores.
        scores = torch.baddbmm(hidden, part.reshape(batch * kv_heads, -1, dim), columns, alpha=scaling).softmax(-1)
        total += scores.sum(1, dtype=torch.float32)
    return total.view(batch, kv_heads, n) / group


def received_mean(queries: Tensor, keys: Tensor, scaling: float, most: Optional[int]) -> Tensor:
    """The attention that each key gets from the queries that see it, divided by their number, and averaged over the query heads of a KV head.

    ``most`` queries are looked at, evenly spaced (the last one always); ``None``: all.
    """
    q, n = queries.shape[2], keys.shape[2]
    rows, positions, seen_by = _rows(q, n, most, keys.device)
    if rows.numel() < q:
        queries = queries[:, :, rows]
    return attention_received(queries, keys, scaling, positions) / seen_by


@functools.lru_cache(maxsize=4)
def _rows(q: int, n: int, most: Optional[int], device: torch.device) -> Tuple[Tensor, Tensor, Tensor]:
    """Which queries are looked at, the positions of these, and by how many of them each key is seen (at least 1); the same for all layers."""
    with torch.inference_mode(False):
        rows = torch.arange(q, device=device)
        if most is not None and q > most:
            rows = q - 1 - (torch.arange(most, device=device).flip(0) * q) // most
        positions = rows + (n - q)
        before = torch.searchsorted(positions, torch.arange(n, device=device))
        return rows, positions, (rows.numel() - before).clamp_min(1)
