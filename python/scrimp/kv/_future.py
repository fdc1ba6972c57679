"""Queries that represent future ones: queries of the prompt that RoPE rotates to the positions after it.

A query that occurred once is likely to occur again (arXiv 2510.00636, section 3).
"""

import sys
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

#: Positions after the prompt that queries are rotated to.
_AHEAD = 256
#: Queries whose attention is in memory at a time.
_CHUNK = 256


class Rotation:
    """RoPE of a model: ``queries * cos(angle) + partner(queries) * sin(angle)``."""

    def __init__(self, module: Any, device: torch.device) -> None:
        self.frequencies = _frequencies(module, device)
        # The model's own exchange of the two dimensions of a pair: (a, b) becomes (-b, a).
        self._rotate_half = sys.modules[type(module).__module__].rotate_half
        rotated = 2 * self.frequencies.numel()
        # The partner of each dimension: the other one of the pair that RoPE turns.
        partner = self._rotate_half(torch.arange(1, rotated + 1, device=device)).abs().long() - 1
        first = torch.minimum(partner, torch.arange(rotated, device=device))
        self._pair = torch.unique(first, return_inverse=True)[1]

    def turn(self, queries: Tensor, by: Tensor) -> Tensor:
        """Rotates queries (``[batch, heads, q, dim]``, after RoPE) by ``by`` (``[q]``) further positions."""
        angle = by.float()[:, None] * self.frequencies[self._pair]
        rotated, rest = queries[..., : angle.shape[-1]].float(), queries[..., angle.shape[-1] :]
        turned = rotated * angle.cos() + self._rotate_half(rotated) * angle.sin()
        return torch.cat([turned.to(queries.dtype), rest], -1)


def _frequencies(module: Any, device: torch.device) -> Tensor:
    """Radians per position of each pair of dimensions."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = module.config
    config = getattr(config, "text_config", config)
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # One set of parameters for each type of layers.
    kinds = getattr(config, "layer_types", None)
    kind = kinds[module.layer_idx] if kinds else None
    nested = isinstance(parameters.get(kind), dict)
    if nested:
        parameters = parameters[kind]
    form = parameters.get("rope_type") or parameters.get("type") or "default"
    if form != "default":
        return ROPE_INIT_FUNCTIONS[form](config, device, **({"layer_type": kind} if nested else {}))[0].float()
    theta = parameters.get("rope_theta") or getattr(config, "rope_theta", 10000.0)
    share = parameters.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    dim = int(module.head_dim * share)
    return theta ** -(torch.arange(0, dim, 2, device=device).float() / dim)


def future_queries(module: Any, queries: Tensor, n: Optional[int], seed: int) -> Tensor:
    """``n`` queries of a prompt (``None``: as many as it has), at random positions after it, ``[batch, query_heads, n, dim]``.

    Args:
        module: the attention of a transformers model; it defines the rotary embedding.
        queries: all queries of the prompt, after RoPE, ``[batch, query_heads, tokens, dim]``.
    """
    tokens = queries.shape[2]
    n = tokens if n is None else min(n, tokens)
    generator = torch.Generator().manual_seed(seed)
    at = torch.randperm(tokens, generator=generator)[:n].sort().values
    by = tokens + torch.randint(0, _AHEAD, (n,), generator=generator) - at
    at, by = at.to(queries.device), by.to(queries.device)
    # Layers without RoPE (SmolLM3: `use_rope`) and models with another position encoding: queries as they are.
    if not getattr(module, "use_rope", True) or not hasattr(sys.modules[type(module).__module__], "rotate_half"):
        return queries[:, :, at]
    return Rotation(module, queries.device).turn(queries[:, :, at], by)


def grouped(queries: Tensor, kv_heads: int) -> Tensor:
    """The queries of each KV head: ``[batch, kv_heads, group * n, dim]``."""
    return queries.unflatten(1, (kv_heads, -1)).flatten(2, 3)


def attention(queries: Tensor, keys: Tensor, scaling: float, bias: Optional[Tensor] = None) -> Tensor:
    """The attention of grouped queries to all keys (no mask), ``[batch, kv_heads, rows, keys]``, float32. ``bias``: ``[batch, kv_heads, keys]``."""
    scores = (queries @ keys.transpose(2, 3)).float() * scaling
    return (scores if bias is None else scores + bias.float()[:, :, None]).softmax(-1)


def expected_max(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tuple[Tensor, Tensor]:
    """For grouped queries: the largest attention that each key receives (``[batch, kv_heads, keys]``), and the outputs (``[..., rows, dim]``), float32."""
    most, outputs = torch.zeros(keys.shape[:3], dtype=torch.float32, device=keys.device), []
    for rows in queries.split(_CHUNK, 2):
        weights = attention(rows, keys, scaling)
        most = torch.maximum(most, weights.amax(2))
        outputs.append(weights @ values.float())
    return most, torch.cat(outputs, 2)
