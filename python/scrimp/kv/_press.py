"""``KVCrushPress``: representatives and mass on top of any scorer press of kvpress (https://github.com/NVIDIA/kvpress)."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, Optional, Tuple

import torch
from torch import Tensor

from ._attention import BIAS, received_mean, register
from ._select import Crush, select


@dataclass
class KVCrushPress:
    """A press whose budget goes partly to representatives of what ``press`` would drop.

    >>> press = KVCrushPress(SnapKVPress(compression_ratio=0.75))
    >>> with press(model):
    ...     model(input_ids, past_key_values=cache)

    The model must use scrimp's attention while it decodes: ``model.set_attn_implementation("scrimp")``, which adds the biases of
    representatives. Works with presses that have ``score`` (kvpress's ``ScorerPress``) and needs nothing else of kvpress.

    Args:
        press: what says which tokens are important, and how many stay (``compression_ratio``).
        crush: share, order and mass of representatives.
        queries: so many of the prompt's queries say what attention tokens get; ``None``: all.
    """

    press: Any
    crush: Crush = Crush()
    sinks: int = 4
    recent: int = 32
    queries: Optional[int] = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not callable(getattr(self.press, "score", None)) or not hasattr(self.press, "compression_ratio"):
            raise TypeError(f"{type(self.press).__name__} has no score(): KVCrushPress composes with scorer presses")
        register()

    @property
    def compression_ratio(self) -> float:
        return self.press.compression_ratio

    @compression_ratio.setter
    def compression_ratio(self, value: float) -> None:
        self.press.compression_ratio = value

    def post_init_from_model(self, model: Any) -> None:
        if hasattr(self.press, "post_init_from_model"):
            self.press.post_init_from_model(model)

    def compress(self, module: Any, hidden_states: Tensor, keys: Tensor, values: Tensor, attentions: Any, kwargs: Any) -> Tuple[Tensor, Tensor]:
        """Called after the prompt's attention: keys and values that stay; their biases go to the module."""
        if hasattr(module, BIAS):
            delattr(module, BIAS)
        if self.compression_ratio == 0:
            return keys, values
        scores = self.press.score(module, hidden_states, keys, values, attentions, kwargs)
        tokens = keys.shape[2]
        budget = max(1, int(tokens * (1 - self.compression_ratio)), min(self.sinks + self.recent, tokens))
        attention = None
        if self.crush.share > 0:
            queries = _queries(module, hidden_states, kwargs)
            attention = received_mean(queries, keys, module.scaling, self.queries)
        chosen = select(
            scores.float(), attention, keys, budget, self.crush, sinks=self.sinks, recent=self.recent, layer=module.layer_idx, seed=self.seed
        )
        if self.crush.share > 0 and self.crush.mass != "none":
            if module.config._attn_implementation != "scrimp":
                raise RuntimeError("biases need scrimp's attention: call model.set_attn_implementation('scrimp') first")
            setattr(module, BIAS, chosen.bias)
        return chosen.take(keys), chosen.take(values)

    def forward_hook(self, module: Any, input: Any, kwargs: Any, output: Any) -> Any:
        """After the attention of a layer: compresses the cache of a prompt that was read at once."""
        # What transformers calls it, newest first.
        names = ("cache", "past_key_values", "past_key_value")
        cache = next((kwargs[name] for name in names if kwargs.get(name) is not None), None)
        if cache is None:
            raise RuntimeError("there is no cache to compress: pass one as past_key_values, or use_cache=True")
        layer, hidden_states = cache.layers[module.layer_idx], kwargs["hidden_states"]
        if layer.keys.shape[2] == hidden_states.shape[1]:
            layer.keys, layer.values = self.compress(module, hidden_states, layer.keys, layer.values, output[1], kwargs)
        return output

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        """Compresses the caches of prompts that ``model`` reads inside."""
        self.post_init_from_model(model)
        text = model.model.language_model if hasattr(model.model, "language_model") else model.model
        hooks = []
        try:
            for layer in text.layers:
                attention = layer.self_attn
                if getattr(attention, "sliding_window", None) or getattr(attention, "is_sliding", False):
                    continue
                attention.rotary_emb = text.rotary_emb
                hooks.append(attention.register_forward_hook(self.forward_hook, with_kwargs=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _queries(module: Any, hidden_states: Tensor, kwargs: Any) -> Tensor:
    """The queries of the prompt, after RoPE."""
    batch, q, _ = hidden_states.shape
    if hasattr(module, "q_proj"):
        states = module.q_proj(hidden_states)
    elif hasattr(module, "qkv_proj"):
        states = module.qkv_proj(hidden_states)[..., : module.config.num_attention_heads * module.head_dim]
    else:
        raise NotImplementedError(f"{type(module).__name__}: its queries cannot be had; it has neither q_proj nor qkv_proj")
    states = states.view(batch, q, -1, module.head_dim).transpose(1, 2)
    if hasattr(module, "q_norm"):
        states = module.q_norm(states)
    cos, sin = (x.unsqueeze(1) for x in kwargs["position_embeddings"])
    half = cos.shape[-1]
    turned, rest = states[..., :half], states[..., half:]
    a, b = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-b, a], -1) * sin, rest], -1)
