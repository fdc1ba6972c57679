"""``KVCrushPress``: representatives and mass on top of any scorer press of kvpress (https://github.com/NVIDIA/kvpress)."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Optional, Tuple, Union

import torch
from torch import Tensor

from ._attention import BIAS, register
from ._heads import select_of_each, with_floor
from ._attention_scores import received_mean
from ._select import Crush, recent_of, select


@dataclass
class KVCrushPress:
    """A press whose budget goes partly to representatives of what ``press`` would drop.

    >>> press = KVCrushPress(SnapKVPress(compression_ratio=0.75))
    >>> with press(model):
    ...     model(input_ids, past_key_values=cache)

    The model must use scrimp's attention while it decodes: ``model.set_attn_implementation("scrimp")``, which adds the biases of
    representatives. Needs nothing of kvpress, but composes with three kinds of its presses: those that have ``score`` (``ScorerPress``); those that
    give each head a budget of its own (``AdaKVPress``); and those that look at the whole cache once it is filled (``KVzipPress``). Heads of different
    budgets are padded to the largest one of their layer.

    Args:
        press: what says which tokens are important, and how many stay (``compression_ratio``).
        crush: share, order and mass of representatives.
        sinks, recent: first and last tokens that stay in any case; they count in the budget. ``recent=None``: a sixth of the budget, 32 to 128.
        queries: so many of the prompt's queries say what attention tokens get; ``None``: all.
    """

    press: Any
    crush: Crush = Crush()
    sinks: int = 4
    recent: Optional[int] = None
    queries: Optional[int] = 512
    seed: int = 0

    def __post_init__(self) -> None:
        press = self.press
        scores = callable(getattr(self._scorer, "score", None)) or callable(getattr(press, "compress_post", None))
        if not scores or not hasattr(press, "compression_ratio"):
            raise TypeError(f"{type(press).__name__} has no score(): KVCrushPress composes with scorer presses")
        register()

    @property
    def _scorer(self) -> Any:
        """The press that scores: the innermost one."""
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
        """Called after the prompt's attention: keys and values that stay; their biases go to the module."""
        if hasattr(module, BIAS):
            delattr(module, BIAS)
        if self.compression_ratio == 0:
            return keys, values
        scores = self._scorer.score(module, hidden_states, keys, values, attentions, kwargs)
        budgets: Any = int(keys.shape[2] * (1 - self.compression_ratio))
        if self._scorer is not self.press:
            self.press.compress(module, hidden_states, keys, values, attentions, kwargs)
            budgets = _kept(module, scores)
        return self._select(module, scores, self._received(module, hidden_states, keys, kwargs), keys, values, budgets)

    def _received(self, module: Any, hidden_states: Tensor, keys: Tensor, kwargs: Any) -> Optional[Tensor]:
        """What attention the tokens of a prompt get, where representatives are wanted."""
        if self.crush.share == 0:
            return None
        return received_mean(_queries(module, hidden_states, kwargs), keys, module.scaling, self.queries)

    def _select(
        self, module: Any, scores: Tensor, attention: Optional[Tensor], keys: Tensor, values: Tensor, budgets: Union[int, Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Keys and values that stay; the biases go to the module. ``budgets``: tokens of each head, one number or ``[batch, kv_heads]``."""
        recent = recent_of(int(keys.shape[2] * (1 - self.compression_ratio)), self.recent)
        at_least = max(1, min(self.sinks + recent, keys.shape[2]))
        more = dict(sinks=self.sinks, recent=recent, layer=module.layer_idx, seed=self.seed)
        if isinstance(budgets, int):
            chosen = select(scores.float(), attention, keys, max(budgets, at_least), self.crush, **more)
        else:
            chosen = select_of_each(scores.float(), attention, keys, with_floor(budgets, at_least), self.crush, **more)
        if self.crush.share > 0 and self.crush.mass != "none" or not isinstance(budgets, int):
            if module.config._attn_implementation != "scrimp":
                raise RuntimeError("biases need scrimp's attention: call model.set_attn_implementation('scrimp') first")
            setattr(module, BIAS, chosen.bias)
        return chosen.take(keys), chosen.take(values)

    def forward_hook(self, module: Any, input: Any, kwargs: Any, output: Any) -> Any:
        """After the attention of a layer: compresses the cache of a prompt that was read at once."""
        layer, hidden_states = _layer(module, kwargs), kwargs["hidden_states"]
        if layer.keys.shape[2] == hidden_states.shape[1]:
            layer.keys, layer.values = self.compress(module, hidden_states, layer.keys, layer.values, output[1], kwargs)
        return output

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        """Compresses the caches of prompts that ``model`` reads inside."""
        if self.compression_ratio > 0 and hasattr(self.press, "compress_post"):
            with self._at_the_end(model):
                yield
            return
        self.post_init_from_model(model)
        with _hooks(model, self.forward_hook):
            yield

    @contextmanager
    def _at_the_end(self, model: Any) -> Iterator[None]:
        """With a press that compresses when the prompt is read: its scores and its share of each head, but our choice."""
        prompts: Dict[int, Tuple[Any, Any, Optional[Tensor]]] = {}

        def look(module: Any, input: Any, kwargs: Any, output: Any) -> None:
            layer, hidden_states = _layer(module, kwargs), kwargs["hidden_states"]
            # Not where the press reads the prompt again.
            if layer.keys.shape[2] == hidden_states.shape[1]:
                prompts[module.layer_idx] = (module, layer, self._received(module, hidden_states, layer.keys, kwargs))

        def choose(model: Any) -> None:
            type(self.press).compress_post(self.press, model)
            for index, (module, layer, attention) in prompts.items():
                scores = self.press.score_val[index]
                budgets = _kept(module, scores)
                layer.keys, layer.values = self._select(module, scores, attention, layer.keys, layer.values, budgets)

        self.press.compress_post = choose
        try:
            with self.press(model), _hooks(model, look):
                yield
        finally:
            del self.press.compress_post


@contextmanager
def _hooks(model: Any, hook: Any) -> Iterator[None]:
    """``hook`` after the attention of each layer that sees all tokens."""
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


def _layer(module: Any, kwargs: Any) -> Any:
    """The module's layer of the cache."""
    # What transformers calls it, newest first.
    names = ("cache", "past_key_values", "past_key_value")
    cache = next((kwargs[name] for name in names if kwargs.get(name) is not None), None)
    if cache is None:
        raise RuntimeError("there is no cache to compress: pass one as past_key_values, or use_cache=True")
    return cache.layers[module.layer_idx]


def _kept(module: Any, scores: Tensor) -> Tensor:
    """How many tokens of each head a press left that masks the others, ``[batch, kv_heads]``. The mask is taken away."""
    batches, heads, tokens = module.masked_key_indices
    module.masked_key_indices = None
    gone = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    gone[batches.to(scores.device), heads.to(scores.device), tokens.to(scores.device)] = True
    return (~gone).sum(-1)


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
