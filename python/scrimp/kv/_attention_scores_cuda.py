"""Accumulated attention scores on a GPU, without the attention matrix in memory.

::

    1. for each query:  norm[i] = log2 of the sum over keys of 2^(q_i k)         one program per tile of queries and span of keys
    2. for each key:    sum over queries of 2^(q_i k - norm[i])                  one program per tile of keys

Both passes compute the products, which takes less time than the memory traffic of the attention matrix. The kernels are in Triton, which PyTorch
installs.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Queries and keys of a tile, and keys per program of the first pass. A single prompt then has enough programs to fill a GPU.
_ROWS, _KEYS, _SPAN = 64, 128, 2048


@triton.jit
def _vectors(ptr, at, inside, stride, dim, DIM: tl.constexpr):
    """Queries or keys ``at``, zeros where they are not ``inside``: ``[at, DIM]``."""
    d = tl.arange(0, DIM)
    return tl.load(ptr + at[:, None] * stride + d[None, :], mask=inside[:, None] & (d < dim)[None, :], other=0.0)


@triton.jit
def _scores(q, k, last, keys, scale, EXACT: tl.constexpr):
    """Scaled scores of a tile, ``-inf`` where a query does not see a key."""
    product = tl.dot(q, tl.trans(k), input_precision="ieee") if EXACT else tl.dot(q, tl.trans(k))
    return tl.where(keys[None, :] <= last[:, None], product * scale, -float("inf"))


@triton.jit
def _norms(
    q_ptr, k_ptr, positions_ptr, norm_ptr, q, n, dim, n_rows, scale, q_head, q_row, k_head, k_row,
    SPAN: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, EXACT: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n_rows
    queries = _vectors(q_ptr + head * q_head, rows, inside, q_row, dim, DIM)
    last = tl.load(positions_ptr + rows % q, mask=inside, other=-1)
    most = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    begin = tl.program_id(2) * SPAN
    for first in range(begin, tl.minimum(tl.max(last) + 1, begin + SPAN), KEYS):
        at = first + tl.arange(0, KEYS)
        k = _vectors(k_ptr + head * k_head, at, at < n, k_row, dim, DIM)
        s = _scores(queries, k, last, at, scale, EXACT)
        new = tl.maximum(most, tl.max(s, 1))
        # Rows that see no key yet keep -inf and add 0.
        base = tl.where(new == -float("inf"), 0.0, new)
        total = total * tl.exp2(most - base) + tl.sum(tl.exp2(s - base[:, None]), 1)
        most = new
    # The logarithm of a span that the query does not see is -inf.
    tl.store(norm_ptr + (tl.program_id(2) * tl.num_programs(1) + head) * n_rows + rows, most + tl.log2(total), mask=inside)


@triton.jit
def _sums(
    q_ptr, k_ptr, positions_ptr, norm_ptr, out_ptr, q, n, dim, n_rows, scale, q_head, q_row, k_head, k_row,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, EXACT: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    k = _vectors(k_ptr + head * k_head, at, at < n, k_row, dim, DIM)
    total = tl.zeros([KEYS], tl.float32)
    for first in range(0, n_rows, ROWS):
        rows = first + tl.arange(0, ROWS)
        inside = rows < n_rows
        last = tl.load(positions_ptr + rows % q, mask=inside, other=-1)
        # Queries before all of these keys do not see them.
        if tl.max(last) >= tl.program_id(0) * KEYS:
            queries = _vectors(q_ptr + head * q_head, rows, inside, q_row, dim, DIM)
            norm = tl.load(norm_ptr + head * n_rows + rows, mask=inside, other=0.0)
            total += tl.sum(tl.exp2(_scores(queries, k, last, at, scale, EXACT) - norm[:, None]), 0)
    tl.store(out_ptr + head * n + at, total, mask=at < n)


def accumulated_scores(queries: Tensor, keys: Tensor, scaling: float, positions: Tensor) -> Tensor:
    """As :func:`scrimp.kv._attention_scores.accumulated_scores`."""
    batch, heads, q, dim = queries.shape
    kv_heads, n = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    # The kernels need vectors with contiguous elements.
    rows, keys = (t if t.stride(2) == 1 else t.contiguous() for t in (queries.reshape(batch * kv_heads, group * q, dim), keys.flatten(0, 1)))
    spans = triton.cdiv(n, _SPAN)
    norm = torch.empty(spans, batch * kv_heads, group * q, dtype=torch.float32, device=keys.device)
    out = torch.empty(batch * kv_heads, n, dtype=torch.float32, device=keys.device)
    sizes = (q, n, dim, group * q, scaling * math.log2(math.e))
    strides = (rows.stride(0), rows.stride(1), keys.stride(0), keys.stride(1))
    tile = dict(ROWS=_ROWS, KEYS=_KEYS, DIM=max(16, triton.next_power_of_2(dim)), EXACT=keys.dtype == torch.float32)
    with torch.cuda.device_of(keys):
        _norms[(triton.cdiv(group * q, _ROWS), batch * kv_heads, spans)](rows, keys, positions, norm, *sizes, *strides, SPAN=_SPAN, **tile)
        norm = (norm * math.log(2)).logsumexp(0) / math.log(2) if spans > 1 else norm
        _sums[(triton.cdiv(n, _KEYS), batch * kv_heads)](rows, keys, positions, norm, out, *sizes, *strides, **tile)
    return out.view(batch, kv_heads, n) / group
