"""Attention with a bias per cached token, and how much attention tokens get: an attention function for transformers."""

import math
from contextlib import nullcontext
from typing import Any, ContextManager, Optional, Tuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

#: The name of the attention function: ``model.set_attn_implementation("scrimp")``.
NAME = "scrimp"
#: Attributes that tell the attention function of a bias (on an attention module or on keys) and of a cache layer (on keys).
BIAS, LAYER = "_scrimp_bias", "_scrimp_layer"
#: Queries whose scores are held at once.
_CHUNK = 128


def attention_received(
    queries: Tensor, keys: Tensor, scaling: float, positions: Optional[Tensor] = None, bias: Optional[Tensor] = None
) -> Tensor:
    """The attention that each key gets, summed over the given queries, ``[batch, query_heads, keys]``.

    ``queries`` are ``[batch, query_heads, q, dim]``; query ``i`` sees keys up to ``positions[i]``, by default the last ``q`` ones of the keys' positions.
    """
    batch, heads, q, dim = queries.shape
    kv_heads, n = keys.shape[1], keys.shape[2]
    if positions is None:
        positions = torch.arange(n - q, n, device=keys.device)
    total = torch.zeros(batch, heads, n, dtype=torch.float32, device=keys.device)
    grouped = queries.view(batch, kv_heads, heads // kv_heads, q, dim)
    columns = keys.flatten(0, 1).transpose(1, 2)
    at = torch.arange(n, device=keys.device)
    for first in range(0, q, _CHUNK):
        part = grouped[:, :, :, first : first + _CHUNK]
        hidden = torch.zeros(part.shape[3], n, dtype=keys.dtype, device=keys.device)
        hidden = hidden.masked_fill_(at > positions[first : first + _CHUNK, None], -math.inf).repeat(part.shape[2], 1)[None]
        if bias is not None:
            hidden = hidden + bias.to(keys.dtype).flatten(0, 1).unsqueeze(1)
        # In the type of the keys: on a GPU, the time of this is the traffic of the scores.
        scores = torch.baddbmm(hidden, part.reshape(batch * kv_heads, -1, dim), columns, alpha=scaling).softmax(-1)
        total += scores.view(batch, heads, -1, n).sum(2, dtype=torch.float32)
    return total


def received_mean(queries: Tensor, keys: Tensor, scaling: float, most: Optional[int]) -> Tensor:
    """The attention that each key gets from the queries that see it, divided by their number, and averaged over the query heads of a KV head.

    ``most`` queries are looked at, evenly spaced (the last one always); ``None``: all.
    """
    q, n = queries.shape[2], keys.shape[2]
    rows = torch.arange(q, device=keys.device)
    if most is not None and q > most:
        rows = q - 1 - (torch.arange(most, device=keys.device).flip(0) * q) // most
    positions = rows + (n - q)
    total = attention_received(queries[:, :, rows], keys, scaling, positions)
    seen = torch.searchsorted(positions, torch.arange(n, device=keys.device))
    counts = (rows.numel() - seen).clamp_min(1)
    return group_mean(total / counts, keys.shape[1])


def group_mean(x: Tensor, kv_heads: int) -> Tensor:
    """``[batch, query_heads, n]`` to ``[batch, kv_heads, n]``."""
    return x.view(x.shape[0], kv_heads, -1, x.shape[-1]).mean(2)


def _kernels(device: torch.device) -> ContextManager[Any]:
    """The kernels that attention with a bias may use. cuDNN's make a plan for each length of the cache, which costs more than the attention."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _fitted(mask: Tensor, n: int) -> Tensor:
    """A mask for ``n`` keys. Transformers makes one for all layers, as long as the first one's cache; the new tokens are the last ones in all of them."""
    missing = n - mask.shape[-1]
    if missing > 0:
        return torch.nn.functional.pad(mask, (missing, 0), value=True if mask.dtype == torch.bool else 0.0)
    return mask[..., -n:]


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Optional[Tensor], dropout: float, scaling: Optional[float]) -> Tensor:
    """Attention with ``bias`` (``[batch, kv_heads, cached]``) on the scores of the first keys, ``[batch, q, query_heads, dim]``.

    The query heads of a KV head become rows of one product, so that neither keys nor biases are repeated for them.
    """
    batch, heads, q, dim = query.shape
    kv_heads, n = key.shape[1], key.shape[2]
    group = heads // kv_heads
    least = torch.finfo(query.dtype).min
    added = bias.to(query.dtype)
    if added.shape[-1] < n:
        added = torch.nn.functional.pad(added, (0, n - added.shape[-1]))
    added = added.unsqueeze(2)
    if mask is None and q > 1:
        mask = torch.ones(q, n, dtype=torch.bool, device=key.device).tril(n - q)[None, None]
    if mask is not None:
        mask = _fitted(mask, n)
        per_head = mask.shape[1] == heads and heads > 1
        mask = mask.unflatten(1, (kv_heads, group)) if per_head else mask.unsqueeze(2)
        added = added.unsqueeze(2)
        added = added.masked_fill(~mask, least) if mask.dtype == torch.bool else (added + mask).clamp_min(least)
        added = added.expand(batch, kv_heads, group, q, n).reshape(batch, kv_heads, group * q, n)
    rows = query.reshape(batch, kv_heads, group * q, dim)
    if mask is None and query.device.type == "cuda" and dropout == 0.0:
        # Few rows: three kernels that read keys and values once. Those of scaled_dot_product_attention are not made for so few.
        scores = torch.baddbmm(added.flatten(0, 1), rows.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=dim**-0.5 if scaling is None else scaling)
        out = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value.flatten(0, 1)
        return out.view(batch, heads, q, value.shape[-1]).transpose(1, 2).contiguous()
    with _kernels(query.device):
        out = torch.nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=added, dropout_p=dropout, scale=scaling)
    return out.reshape(batch, heads, q, value.shape[-1]).transpose(1, 2).contiguous()


def forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Optional[Tensor], dropout: float = 0.0,
    scaling: Optional[float] = None, is_causal: Optional[bool] = None, **kwargs: Any,
) -> Tuple[Tensor, None]:
    """``scaled_dot_product_attention``, with the bias of representatives where the cache or a press has set one."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layer, bias = getattr(key, LAYER, None), getattr(key, BIAS, None)
    q, n = query.shape[2], key.shape[2]
    if layer is not None and attention_mask is not None:
        raise ValueError("CompressedCache takes prompts without padding: one at a time, or all of one length")
    if bias is None:
        bias = getattr(module, BIAS, None)
        if bias is not None and (q == n or bias.shape[0] != key.shape[0] or bias.shape[-1] > n):
            # A new prompt: what a press said of an earlier one is over.
            delattr(module, BIAS)
            bias = None
    if bias is None:
        output = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    else:
        output = biased_attention(query, key, value, bias, attention_mask, dropout, scaling), None
    if layer is not None:
        layer.after_attention(query, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return output


def register() -> None:
    """Makes the attention function known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
