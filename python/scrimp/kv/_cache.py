"""``CompressedCache``: a cache for ``model.generate`` that keeps a part of the prompt's tokens."""

import math
from typing import Any, Optional, Tuple, Union

import torch
from torch import Tensor

from ._attention import BIAS, LAYER, register
from ._policies import POLICIES
from ._attention_scores import received_mean
from ._select import Crush, Selection, recent_of
from ._store import STORES, Growing, Store
from ._waiting import Waiting

try:
    from transformers.cache_utils import Cache, CacheLayerMixin, DynamicSlidingWindowLayer
except ImportError as _error:
    raise ImportError("scrimp.kv needs transformers 4.56 or later: pip install transformers") from _error

register()


class CompressedLayer(CacheLayerMixin):
    """The cache of one layer: what was kept of the prompt, and all tokens since."""

    is_sliding = False
    is_croppable = False

    def __init__(self, owner: "CompressedCache", index: int) -> None:
        super().__init__()
        self.owner, self.index = owner, index
        self.seen = 0
        # What was packed of the prompt, and everything else; keys and values.
        self.packed: Optional[Tuple[Store, Store]] = None
        self.open: Optional[Tuple[Growing, Growing]] = None
        self.bias: Optional[Tensor] = None
        # Whether the prompt's attention is still to come; whether the choice is.
        self.pending = self.waits = False

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
        if self.pending:
            raise RuntimeError(
                "the prompt was not compressed, because the model does not use scrimp's attention: "
                "call model.set_attn_implementation('scrimp') first"
            )
        self._settle()
        first = self.seen == 0
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
            setattr(keys, LAYER, self)
            self.pending = True
        elif self.bias is not None:
            setattr(keys, BIAS, self._biases(keys.shape[2]))
        return keys, values

    def _biases(self, n: int) -> Tensor:
        """Biases of ``n`` tokens; those that came after the prompt have none. Memory grows rarely, so that a step adds nothing to it."""
        missing = n - self.bias.shape[-1]
        if missing > 0:
            self.bias = torch.nn.functional.pad(self.bias, (0, missing + n // 8))
        return self.bias[..., :n]

    def after_attention(self, queries: Tensor, scaling: float) -> None:
        """Called by the attention function when the prompt's attention is done."""
        owner, keys = self.owner, self.keys
        self.pending = False
        mean = None
        if owner.policy == "h2o" or owner.crush.share > 0:
            mean = received_mean(queries, keys, scaling, owner.queries)
        self.waits = True
        owner.waiting.add(self, POLICIES[owner.policy](queries, keys, scaling, mean), mean, keys)

    def _settle(self) -> None:
        if self.waits:
            self.owner.waiting.end()

    def keep(self, chosen: Selection) -> None:
        """Drops what was not chosen."""
        self.waits = False
        owner, keys = self.owner, self.keys
        self.bias = chosen.bias.to(keys.dtype) if owner.crush.share > 0 and owner.crush.mass != "none" else None
        store = STORES[owner.format]
        if store is None:
            self._set(chosen.take(keys), chosen.take(self.values))
        else:
            self.packed = (store(chosen.take(keys)), store(chosen.take(self.values)))
            self._set(keys[:, :, :0].clone(), self.values[:, :, :0].clone())

    def get_seq_length(self, *args: Any) -> int:
        """Tokens that were seen; what RoPE goes on with."""
        return self.seen

    def _held(self) -> int:
        packed = 0 if self.packed is None else self.packed[0].tokens
        return packed + (self.open[0].length if self.is_initialized else 0)

    def get_mask_sizes(self, query_length: Any) -> Tuple[int, int]:
        """Keys count as the last positions before the new tokens, so that all of them are seen."""
        self._settle()
        n = query_length if isinstance(query_length, int) else query_length.shape[0]
        held = self._held()
        return held + n, self.seen - held

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def reset(self) -> None:
        self._settle()
        self.__init__(self.owner, self.index)

    def crop(self, *_: Any) -> None:
        raise RuntimeError("a compressed cache cannot go back: what was dropped is gone")

    def _each_row(self, batch: Tensor) -> None:
        if not self.is_initialized:
            return
        self._settle()
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
        self._settle()
        parts = [*(self.packed or ()), *(self.open or ())]
        bias = 0 if self.bias is None else self.bias.numel() * self.bias.element_size()
        return sum(part.nbytes for part in parts) + bias


class CompressedCache(Cache):
    """Keeps ``budget`` tokens of a prompt for each KV head, chosen by ``policy``, with representatives of the others (KVCrush).

    >>> model.set_attn_implementation("scrimp")
    >>> cache = CompressedCache(policy="snapkv", budget=0.25, kvcrush=0.75)
    >>> model.generate(**inputs, past_key_values=cache)

    The first tokens that go through are the prompt: it is read with a whole cache and compressed layer by layer. Whatever comes later is
    kept. Prompts of a batch must be of one length, without padding.

    Args:
        policy: ``snapkv``, ``h2o``, ``tova``, ``knorm`` or ``streaming``.
        budget: tokens that each KV head keeps; a float is a share of the prompt.
        kvcrush: share of the budget for representatives, or a :class:`Crush`; 0 is off.
        format: ``model`` (as the model computes them) or ``int8``.
        sinks, recent: first and last tokens of the prompt that stay in any case; they count in the budget. ``recent=None``: a sixth of the budget,
            32 to 128.
        queries: so many of the prompt's queries say what attention tokens get; ``None``: all.
        layers_at_once: choose for so many layers together; ``None``: 4 on a GPU, where that is faster, else each on its own.
        config: the model's, where some of its layers have a sliding window: these are small already and stay as they are.
    """

    def __init__(
        self, policy: str = "snapkv", budget: Union[int, float] = 0.25, kvcrush: Union[float, Crush] = 0.75, format: str = "model", *,
        sinks: int = 4, recent: Optional[int] = None, queries: Optional[int] = 512, seed: int = 0, config: Any = None, layers_at_once: Optional[int] = None,
    ) -> None:
        super().__init__(layers=[])
        if policy not in POLICIES:
            raise ValueError(f"there is no policy {policy!r}; these are: {', '.join(POLICIES)}")
        if format not in STORES:
            raise ValueError(f"there is no format {format!r}; these are: {', '.join(STORES)}")
        if isinstance(budget, bool) or not isinstance(budget, (int, float)):
            raise TypeError(f"budget must be a number of tokens or a share, not {budget!r}")
        if isinstance(budget, float) and not 0 < budget <= 1:
            raise ValueError(f"a budget of {budget} is no share of the prompt: it must be above 0.0 and at most 1.0")
        if queries is not None and queries < 1:
            raise ValueError("queries must be 1 or more, or None for all")
        if layers_at_once is not None and layers_at_once < 1:
            raise ValueError("layers_at_once must be 1 or more, or None")
        self.policy, self.budget, self.format = policy, budget, format
        self.crush = kvcrush if isinstance(kvcrush, Crush) else Crush(share=float(kvcrush))
        self.sinks, self.recent, self.queries, self.seed = sinks, recent, queries, seed
        if isinstance(budget, int) and budget < max(1, sinks + recent_of(budget, recent)):
            raise ValueError(
                f"a budget of {budget} tokens is smaller than the {sinks} sinks and {recent_of(budget, recent)} recent tokens; take 1 or more beyond"
            )
        self.waiting = Waiting(self, layers_at_once)
        config = getattr(config, "text_config", config)
        kinds = getattr(config, "layer_types", None) or []
        self._windows = [getattr(config, "sliding_window", None) if kind == "sliding_attention" else None for kind in kinds]

    def tokens(self, prompt: int) -> int:
        """Tokens that each KV head keeps of a prompt; of a short one, never less than sinks and recent ones."""
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
        """Bytes of the whole cache."""
        return sum(
            layer.nbytes if isinstance(layer, CompressedLayer) else sum(t.numel() * t.element_size() for t in (layer.keys, layer.values))
            for layer in self.layers
        )
