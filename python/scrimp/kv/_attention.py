"""Attention with a bias per cached token: an attention function for transformers."""

from contextlib import nullcontext
from typing import Any, ContextManager, Optional, Tuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

#: The name of the attention function: ``model.set_attn_implementation("scrimp")``.
NAME = "scrimp"
#: Attributes of keys that pass a bias and a cache layer to the attention function.
BIAS, LAYER = "_scrimp_bias", "_scrimp_layer"


def _kernels(device: torch.device) -> ContextManager[Any]:
    """The kernels for attention with a bias. cuDNN is excluded: it plans anew for each length of the cache, which takes longer than the attention."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def hides_tokens(mask: Optional[Tensor]) -> bool:
    """Whether the last token of a prompt does not see all tokens: those are padding, or outside of a sliding window."""
    if mask is None:
        return False
    last = mask if mask.dim() == 2 else mask[..., -1, :]
    visible = last > torch.finfo(last.dtype).min / 2 if last.is_floating_point() and mask.dim() > 2 else last.bool()
    return not bool(visible.all())


def _fitted(mask: Tensor, n: int) -> Tensor:
    """The mask for ``n`` keys. Transformers makes one mask for all layers, with the cache length of the first layer; in every layer the new tokens
    come last."""
    missing = n - mask.shape[-1]
    if missing > 0:
        return torch.nn.functional.pad(mask, (missing, 0), value=True if mask.dtype == torch.bool else 0.0)
    return mask[..., -n:]


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Optional[Tensor], dropout: float, scaling: Optional[float]) -> Tensor:
    """Attention with ``bias`` (``[batch, kv_heads, cached]``) on the scores of the first keys, ``[batch, q, query_heads, dim]``.

    The query heads of a KV head become rows of one product, so that keys and biases are not repeated.
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
        # Three kernels read keys and values once. For so few rows they are faster than scaled_dot_product_attention.
        scores = torch.baddbmm(added.flatten(0, 1), rows.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=dim**-0.5 if scaling is None else scaling)
        out = scores.softmax(-1) @ value.flatten(0, 1)
        return out.view(batch, heads, q, value.shape[-1]).transpose(1, 2).contiguous()
    with _kernels(query.device):
        out = torch.nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=added, dropout_p=dropout, scale=scaling)
    return out.reshape(batch, heads, q, value.shape[-1]).transpose(1, 2).contiguous()


def forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Optional[Tensor], dropout: float = 0.0,
    scaling: Optional[float] = None, is_causal: Optional[bool] = None, **kwargs: Any,
) -> Tuple[Tensor, None]:
    """``scaled_dot_product_attention``, with the bias of representatives if the cache or a press has set one."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layer, bias = getattr(key, LAYER, None), getattr(key, BIAS, None)
    n = key.shape[2]
    window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
    if layer is not None and window and n > window:
        layer.slide(window)
        layer = None
    if layer is not None and hides_tokens(attention_mask):
        raise ValueError("CompressedCache takes prompts without padding: one at a time, or all of one length")
    if bias is None:
        if attention_mask is not None and attention_mask.shape[-1] != n:
            attention_mask = _fitted(attention_mask, n)
        output = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    else:
        output = biased_attention(query, key, value, bias, attention_mask, dropout, scaling), None
    if layer is not None:
        layer.after_attention(module, query, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return output


def register() -> None:
    """Registers the attention function with transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
