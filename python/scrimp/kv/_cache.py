"""``CompressedCache``: a cache for ``model.generate`` that keeps a budget of the prompt's tokens."""

import math
from typing import Any, Optional, Tuple, Union

import torch
from torch import Tensor

from ._attention import BIAS, LAYER, register
from ._fit import fit_values
from ._future import expected_max, future_queries, grouped
from ._policies import EXPECTED_MAX, POLICIES
from ._attention_scores import mean_scores
from ._later import warn_of_later_pass
from ._select import Crush, Selection, check_reserved, recent_of
from ._selection_queue import SelectionQueue
from ._store import STORES, Growing, Store

try:
    from transformers.cache_utils import Cache, CacheLayerMixin, DynamicSlidingWindowLayer
except ImportError as _error:
    raise ImportError("scrimp.kv needs transformers 4.56 or later: pip install transformers") from _error

register()


class CompressedLayer(CacheLayerMixin):
    """The cache of one layer: the kept tokens of the prompt and all later tokens."""

    is_sliding = False
    #: Tokens after the prompt can be removed again, for assisted generation.
    is_croppable = True

    def __init__(self, owner: "CompressedCache", index: int) -> None:
        super().__init__()
        self.owner, self.index = owner, index
        # Tokens of the text, of the compressed prompt, and the last ones of the prompt, which all heads keep.
        self.seen = self.prompt = self.recent = 0
        # Keys and values: the packed tokens of the prompt, and all other tokens.
        self.packed: Optional[Tuple[Store, Store]] = None
        self.open: Optional[Tuple[Growing, Growing]] = None
        self.bias: Optional[Tensor] = None
        # Future queries, their outputs over the whole prompt, and the scale of scores, until the values are fitted.
        self.future: Optional[Tuple[Tensor, Tensor, float]] = None
        # Set from the prompt until its attention is computed, and from then on until its tokens are selected.
        self.awaits_attention = self.awaits_selection = False

    def lazy_initialization(self, key_states: Tensor, value_states: Optional[Tensor] = None) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        value_states = key_states if value_states is None else value_states
        self._set(key_states[:, :, :0], value_states[:, :, :0])
        self.is_initialized = True

    def _set(self, keys: Tensor, values: Tensor) -> None:
        self.open = (Growing(keys), Growing(values))
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.awaits_attention:
            raise RuntimeError(
                "the prompt was not compressed, because the model does not use scrimp's attention: "
                "call model.set_attn_implementation('scrimp') first"
            )
        self._ensure_selected()
        first = self.seen == 0
        if self.index == 0 and self.prompt:
            warn_of_later_pass(key_states.shape[2], self._held())
        self.seen += key_states.shape[2]
        if first:
            self._set(key_states, value_states)
        else:
            self.keys, self.values = self.open[0].append(key_states), self.open[1].append(value_states)
        if self.packed is None:
            keys, values = self.keys[:], self.values[:]
        else:
            keys = torch.cat([self.packed[0].get(), self.keys], 2)
            values = torch.cat([self.packed[1].get(), self.values], 2)
        if first and self.owner.tokens(self.seen) < self.seen:
            self.prompt = self.seen
            setattr(keys, LAYER, self)
            self.awaits_attention = True
        elif self.bias is not None:
            setattr(keys, BIAS, self._biases(keys.shape[2]))
        return keys, values

    def _biases(self, n: int) -> Tensor:
        """The biases of ``n`` tokens, 0 for tokens after the prompt. Spare room makes growth rare."""
        missing = n - self.bias.shape[-1]
        if missing > 0:
            self.bias = torch.nn.functional.pad(self.bias, (0, missing + n // 8))
        return self.bias[..., :n]

    def after_attention(self, module: Any, queries: Tensor, scaling: float) -> None:
        """Called by the attention function of ``module`` after the prompt's attention."""
        owner, keys = self.owner, self.keys
        self.awaits_attention = False
        mean = None
        if owner.policy == "h2o" or owner.crush.enabled:
            mean = mean_scores(queries, keys, scaling, owner.queries)
        scores = None
        if owner.policy == EXPECTED_MAX or owner.fit:
            future = grouped(future_queries(module, queries, owner.future_queries, owner.seed + self.index), keys.shape[1])
            scores, outputs = expected_max(future, keys, self.values, scaling)
            self.future = (future, outputs, scaling) if owner.fit else None
        if owner.policy != EXPECTED_MAX:
            scores = POLICIES[owner.policy](queries, keys, scaling, mean)
        self.awaits_selection = True
        owner.queue.add(self, scores, mean, keys)

    def _ensure_selected(self) -> None:
        if self.awaits_selection:
            self.owner.queue.flush()

    def keep(self, selection: Selection) -> None:
        """Drops all tokens that are not selected."""
        self.awaits_selection = False
        owner, keys = self.owner, self.keys
        self.recent = min(recent_of(owner.tokens(self.prompt), owner.recent), self.prompt)
        self.bias = selection.bias.to(keys.dtype) if owner.crush.has_bias else None
        store = STORES[owner.format]
        kept, values = selection.take(keys), selection.take(self.values)
        packed = None if store is None else store(kept)
        if self.future is not None:
            # With the keys as they are stored, so that the fit compensates for their rounding, too.
            values = fit_values(*self.future, kept if packed is None else packed.get(), values, self.bias)
            self.future = None
        if packed is None:
            self._set(kept, values)
        else:
            self.packed = (packed, store(values))
            self._set(keys[:, :, :0].clone(), self.values[:, :, :0].clone())

    def get_seq_length(self, *args: Any) -> int:
        """Tokens of the text, kept or dropped: RoPE continues from here."""
        return self.seen

    def _held(self) -> int:
        packed = 0 if self.packed is None else self.packed[0].tokens
        return packed + (self.open[0].length if self.is_initialized else 0)

    def get_mask_sizes(self, query_length: Any) -> Tuple[int, int]:
        """The kept keys take the last positions before the new tokens, so that the mask covers all of them."""
        self._ensure_selected()
        n = query_length if isinstance(query_length, int) else query_length.shape[0]
        held = self._held()
        return held + n, self.seen - held

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def reset(self) -> None:
        self._ensure_selected()
        self.__init__(self.owner, self.index)

    def crop(self, tokens: int) -> None:
        """Removes the last ``-tokens`` tokens: those after the prompt, and of the prompt its recent tokens, which all heads keep.
        (Assisted generation reads its first candidates with the prompt.) A positive number is the length that remains.
        """
        removed = -tokens if tokens <= 0 else max(self.seen - tokens, 0)
        if not removed or not self.is_initialized:
            return
        self._ensure_selected()
        of_prompt = max(removed - (self.seen - self.prompt), 0)
        if of_prompt > self.recent:
            raise RuntimeError(f"a compressed prompt cannot be cropped by {of_prompt} tokens: only its last {self.recent} are complete")
        self.seen, self.prompt, self.recent = self.seen - removed, self.prompt - of_prompt, self.recent - of_prompt
        if self.packed is not None:
            for part in self.packed:
                part.truncate(of_prompt)
            removed -= of_prompt
        self.keys, self.values = (part.truncate(removed) for part in self.open)

    def slide(self, window: int) -> None:
        """Replaces this layer by one with a sliding window: it holds the last tokens of the prompt, which it keeps uncompressed."""
        layer = DynamicSlidingWindowLayer(window)
        layer.update(self.keys, self.values)
        self.owner.layers[self.index] = layer

    def _each_row(self, batch: Tensor) -> None:
        if not self.is_initialized:
            return
        self._ensure_selected()
        self.open = (self.open[0].select(batch), self.open[1].select(batch))
        self.keys, self.values = (part.get() for part in self.open)
        if self.packed is not None:
            self.packed = (self.packed[0].select(batch), self.packed[1].select(batch))
        if self.bias is not None:
            self.bias = self.bias.index_select(0, batch)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._each_row(beam_idx.to(self.keys.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each_row(torch.arange(self.keys.shape[0], device=self.keys.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each_row(indices.to(self.keys.device))

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and biases."""
        self._ensure_selected()
        parts = [*(self.packed or ()), *(self.open or ())]
        bias = 0 if self.bias is None else self.bias.numel() * self.bias.element_size()
        return sum(part.nbytes for part in parts) + bias


#: Shares of the tokens that take, in int8 with scales and biases, a fraction of the bytes of a whole cache in bfloat16.
_SHARES = {4: 0.476, 8: 0.238, 16: 0.119}


class CompressedCache(Cache):
    """Keeps ``budget`` tokens of a prompt per KV head, selected by ``policy``, with representatives of the dropped ones (KVCrush).

    >>> model.set_attn_implementation("scrimp")
    >>> cache = CompressedCache(shrink=4)
    >>> model.generate(**inputs, past_key_values=cache)

    The first forward pass is the prompt: each layer attends with a full cache and is compressed afterwards (with ``expected-max``, all layers
    after the pass). All later tokens are kept. The prompts of a batch must have one length, without padding.

    Args:
        policy: ``expected-max``, ``snapkv``, ``h2o``, ``tova``, ``knorm`` or ``streaming``.
        budget: tokens that each KV head keeps: a number (int) or a share of the prompt (float). With ``expected-max``, the average over all
            layers, which share one budget. ``None``: 0.25.
        kvcrush: share of the budget for representatives, or a :class:`Crush`; 0 turns KVCrush off. ``None``: 0.25 with ``expected-max``, else 0.75.
        format: storage of the kept tokens: ``model`` (the model's type) or ``int8``. ``None``: ``model``.
        shrink: instead of budget and format: 4, 8 or 16 times fewer bytes than the whole prompt takes in bfloat16.
        sinks, recent: first and last tokens of the prompt that are always kept; they count in the budget. ``recent=None``: a sixth of the
            budget, 32 to 128.
        fit: replace the values of the kept tokens by those that reproduce the attention over all tokens. ``None``: with ``expected-max`` only,
            because on some models the fit costs accuracy with other policies.
        queries: number of the prompt's queries that contribute to mean attention scores; ``None``: all.
        future_queries: number of the prompt's queries that ``expected-max`` and the fit rotate to later positions; ``None``: all.
        layers_at_once: number of layers whose tokens are selected together; ``None``: 4 on a GPU, where that is faster, else 1.
        config: the model's configuration. Layers with a sliding window that is shorter than the prompt are small and are not compressed;
            the attention function recognizes them without ``config``, too.
    """

    def __init__(
        self, policy: str = EXPECTED_MAX, budget: Union[int, float, None] = None, kvcrush: Union[float, Crush, None] = None, format: Optional[str] = None, *,
        shrink: Optional[int] = None, fit: Optional[bool] = None, sinks: int = 4, recent: Optional[int] = None, queries: Optional[int] = 512, future_queries: Optional[int] = 512, seed: int = 0, config: Any = None, layers_at_once: Optional[int] = None,
    ) -> None:
        super().__init__(layers=[])
        if shrink is not None:
            if budget is not None or format is not None:
                raise ValueError("shrink chooses the budget and the format: leave them out")
            if shrink not in _SHARES:
                raise ValueError(f"there is no cache that is {shrink} times smaller; there are {', '.join(map(str, _SHARES))}")
            budget, format = _SHARES[shrink], "int8"
        budget, format = 0.25 if budget is None else budget, format or "model"
        if policy not in (EXPECTED_MAX, *POLICIES):
            raise ValueError(f"there is no policy {policy!r}; there are {EXPECTED_MAX}, {', '.join(POLICIES)}")
        if format not in STORES:
            raise ValueError(f"there is no format {format!r}; there are {', '.join(STORES)}")
        if isinstance(budget, bool) or not isinstance(budget, (int, float)):
            raise TypeError(f"budget must be a number of tokens or a share, not {budget!r}")
        if isinstance(budget, float) and not 0 < budget <= 1:
            raise ValueError(f"a budget of {budget} is no share of the prompt: it must be above 0.0 and at most 1.0")
        check_reserved(sinks, recent)
        for name, number in (("queries", queries), ("future_queries", future_queries)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be 1 or more, or None for all")
        if layers_at_once is not None and layers_at_once < 1:
            raise ValueError("layers_at_once must be 1 or more, or None")
        self.policy, self.budget, self.format = policy, budget, format
        if kvcrush is None:
            kvcrush = 0.25 if policy == EXPECTED_MAX else 0.75
        self.crush = kvcrush if isinstance(kvcrush, Crush) else Crush(share=float(kvcrush))
        self.sinks, self.recent, self.queries, self.seed = sinks, recent, queries, seed
        self.fit, self.future_queries = policy == EXPECTED_MAX if fit is None else fit, future_queries
        if isinstance(budget, int) and budget < max(1, sinks + recent_of(budget, recent)):
            raise ValueError(
                f"a budget of {budget} tokens is smaller than the {sinks} sinks and {recent_of(budget, recent)} recent tokens; take 1 or more beyond"
            )
        #: Whether all layers share one budget: a layer keeps as many tokens as it has among the best scores of all layers.
        self.shares_layers = policy == EXPECTED_MAX
        self.queue = SelectionQueue(self, layers_at_once)
        config = getattr(config, "text_config", config)
        kinds = getattr(config, "layer_types", None) or []
        self._windows = [getattr(config, "sliding_window", None) if kind == "sliding_attention" else None for kind in kinds]

    def tokens(self, prompt: int) -> int:
        """Tokens that each KV head keeps of a prompt: at least the sinks and recent tokens."""
        n = self.budget if isinstance(self.budget, int) else math.floor(self.budget * prompt + 0.5)
        return max(n, self.sinks + recent_of(n, self.recent))

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Tuple[Tensor, Tensor]:
        while len(self.layers) <= layer_idx:
            index = len(self.layers)
            window = self._windows[index] if index < len(self._windows) else None
            self.layers.append(DynamicSlidingWindowLayer(window) if window else CompressedLayer(self, index))
        return self.layers[layer_idx].update(key_states, value_states, *args, **kwargs)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and biases of all layers."""
        return sum(
            layer.nbytes if isinstance(layer, CompressedLayer) else sum(t.numel() * t.element_size() for t in (layer.keys, layer.values))
            for layer in self.layers
        )
