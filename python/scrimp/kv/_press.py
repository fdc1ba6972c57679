"""``KVCrushPress``: KVCrush on top of a press of kvpress (https://github.com/NVIDIA/kvpress)."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Optional, Tuple, Union

import torch
from torch import Tensor

from ._attention import hides_tokens, register
from ._biased import set_bias
from ._heads import select_per_head, with_floor
from ._later import warn_of_later_pass
from ._attention_scores import mean_scores
from ._select import Crush, check_reserved, recent_of, select


@dataclass
class KVCrushPress:
    """A press that spends a part of the budget of ``press`` on representatives of the dropped tokens.

    >>> press = KVCrushPress(SnapKVPress(compression_ratio=0.75))
    >>> with press(model):
    ...     model(input_ids, past_key_values=cache)

    The model must decode with scrimp's attention, which adds the biases of representatives: ``model.set_attn_implementation("scrimp")``. This
    class does not import kvpress. It composes with three kinds of presses: presses with ``score`` (``ScorerPress``), presses with a budget per
    head (``AdaKVPress``), and presses that compress after the prefill (``KVzipPress``). Heads are padded to the largest budget of their layer.

    Args:
        press: the press that scores tokens and sets the budget (``compression_ratio``).
        crush: share and mass of representatives.
        sinks, recent: first and last tokens that are always kept; they count in the budget. ``recent=None``: a sixth of the budget, 32 to 128.
        queries: number of the prompt's queries that contribute to mean attention scores; ``None``: all.
    """

    press: Any
    crush: Crush = Crush()
    sinks: int = 4
    recent: Optional[int] = None
    queries: Optional[int] = 512
    seed: int = 0

    def __post_init__(self) -> None:
        press = self.press
        has_scores = callable(getattr(self._scorer, "score", None)) or callable(getattr(press, "compress_post", None))
        if not has_scores or not hasattr(press, "compression_ratio"):
            raise TypeError(f"{type(press).__name__} has no score(): KVCrushPress composes with scorer presses")
        check_reserved(self.sinks, self.recent)
        register()

    @property
    def _scorer(self) -> Any:
        """The innermost press, which computes the scores."""
        return getattr(self.press, "press", self.press)

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
        """Called after the prompt's attention. Returns the kept keys and values, and sets the biases of the cache's layer."""
        layer = _layer(module, kwargs)
        set_bias(layer, None)
        if self.compression_ratio == 0:
            return keys, values
        _check_padding(kwargs)
        scores = self._scorer.score(module, hidden_states, keys, values, attentions, kwargs)
        budgets: Any = int(keys.shape[2] * (1 - self.compression_ratio))
        if self._scorer is not self.press:
            self.press.compress(module, hidden_states, keys, values, attentions, kwargs)
            budgets = _take_budgets(module, scores)
        return self._select((module, layer), scores, self._attention(module, hidden_states, keys, kwargs), keys, values, budgets)

    def _attention(self, module: Any, hidden_states: Tensor, keys: Tensor, kwargs: Any) -> Optional[Tensor]:
        """Mean attention scores of the prompt's tokens, if KVCrush needs them."""
        if not self.crush.enabled:
            return None
        return mean_scores(_queries(module, hidden_states, kwargs), keys, module.scaling, self.queries)

    def _select(
        self, of: Tuple[Any, Any], scores: Tensor, attention: Optional[Tensor], keys: Tensor, values: Tensor, budgets: Union[int, Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Returns the kept keys and values, and sets the biases of the cache's layer. ``of``: the attention module and the layer.
        ``budgets``: tokens per head, one number or ``[batch, kv_heads]``.
        """
        module, layer = of
        recent = recent_of(int(keys.shape[2] * (1 - self.compression_ratio)), self.recent)
        at_least = max(1, min(self.sinks + recent, keys.shape[2]))
        more = dict(sinks=self.sinks, recent=recent, layer=module.layer_idx, seed=self.seed)
        if isinstance(budgets, int):
            selection = select(scores.float(), attention, keys, max(budgets, at_least), self.crush, **more)
        else:
            selection = select_per_head(scores.float(), attention, keys, with_floor(budgets, at_least), self.crush, **more)
        if self.crush.has_bias or not isinstance(budgets, int):
            if module.config._attn_implementation != "scrimp":
                raise RuntimeError("biases need scrimp's attention: call model.set_attn_implementation('scrimp') first")
            set_bias(layer, selection.bias)
        return selection.take(keys), selection.take(values)

    def forward_hook(self, module: Any, input: Any, kwargs: Any, output: Any) -> Any:
        """Called after the attention of a layer: compresses the cache if the prompt was read in one pass."""
        layer, hidden_states = _layer(module, kwargs), kwargs["hidden_states"]
        if layer.keys.shape[2] == hidden_states.shape[1]:
            layer.keys, layer.values = self.compress(module, hidden_states, layer.keys, layer.values, output[1], kwargs)
        elif module.layer_idx == 0:
            warn_of_later_pass(hidden_states.shape[1], layer.keys.shape[2])
        return output

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        """Within the context, compresses the cache of each prompt that ``model`` reads."""
        if self.compression_ratio > 0 and hasattr(self.press, "compress_post"):
            with self._after_prefill(model):
                yield
            return
        self.post_init_from_model(model)
        with _hooks(model, self.forward_hook):
            yield

    @contextmanager
    def _after_prefill(self, model: Any) -> Iterator[None]:
        """For a press that compresses after the prefill: its scores and its budget per head, with our selection."""
        prompts: Dict[int, Tuple[Any, Any, Optional[Tensor]]] = {}

        def record(module: Any, input: Any, kwargs: Any, output: Any) -> None:
            layer, hidden_states = _layer(module, kwargs), kwargs["hidden_states"]
            # False while the press reads the prompt again.
            if layer.keys.shape[2] == hidden_states.shape[1]:
                _check_padding(kwargs)
                prompts[module.layer_idx] = (module, layer, self._attention(module, hidden_states, layer.keys, kwargs))

        def compress_post(model: Any) -> None:
            type(self.press).compress_post(self.press, model)
            for index, (module, layer, attention) in prompts.items():
                scores = self.press.score_val[index]
                budgets = _take_budgets(module, scores)
                layer.keys, layer.values = self._select((module, layer), scores, attention, layer.keys, layer.values, budgets)

        self.press.compress_post = compress_post
        try:
            with self.press(model), _hooks(model, record):
                yield
        finally:
            del self.press.compress_post


@contextmanager
def _hooks(model: Any, hook: Any) -> Iterator[None]:
    """Registers ``hook`` on the attention of each layer with full attention."""
    text = model.model.language_model if hasattr(model.model, "language_model") else model.model
    hooks = []
    try:
        for layer in text.layers:
            attention = layer.self_attn
            if getattr(attention, "sliding_window", None) or getattr(attention, "is_sliding", False):
                continue
            attention.rotary_emb = text.rotary_emb
            hooks.append(attention.register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_padding(kwargs: Any) -> None:
    if hides_tokens(kwargs.get("attention_mask")):
        raise ValueError("KVCrushPress takes prompts without padding: one at a time, or all of one length")


def _layer(module: Any, kwargs: Any) -> Any:
    """The module's layer of the cache."""
    # The argument's names in transformers, newest first.
    names = ("cache", "past_key_values", "past_key_value")
    cache = next((kwargs[name] for name in names if kwargs.get(name) is not None), None)
    if cache is None:
        raise RuntimeError("there is no cache to compress: pass past_key_values or use_cache=True")
    return cache.layers[module.layer_idx]


def _take_budgets(module: Any, scores: Tensor) -> Tensor:
    """The number of tokens per head that a masking press has kept, ``[batch, kv_heads]``. Removes the mask."""
    batches, heads, tokens = module.masked_key_indices
    module.masked_key_indices = None
    masked = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    masked[batches.to(scores.device), heads.to(scores.device), tokens.to(scores.device)] = True
    return (~masked).sum(-1)


def _queries(module: Any, hidden_states: Tensor, kwargs: Any) -> Tensor:
    """The queries of the prompt, after RoPE."""
    batch, q, _ = hidden_states.shape
    if hasattr(module, "q_proj"):
        states = module.q_proj(hidden_states)
    elif hasattr(module, "qkv_proj"):
        states = module.qkv_proj(hidden_states)[..., : module.config.num_attention_heads * module.head_dim]
    else:
        raise NotImplementedError(f"{type(module).__name__}: unsupported attention: it has neither q_proj nor qkv_proj")
    states = states.view(batch, q, -1, module.head_dim).transpose(1, 2)
    if hasattr(module, "q_norm"):
        states = module.q_norm(states)
    cos, sin = (x.unsqueeze(1) for x in kwargs["position_embeddings"])
    half = cos.shape[-1]
    rotated, rest = states[..., :half], states[..., half:]
    a, b = rotated.chunk(2, -1)
    return torch.cat([rotated * cos + torch.cat([-b, a], -1) * sin, rest], -1)
