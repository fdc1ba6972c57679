"""The biases of representatives belong to a layer of a cache: two caches of one model have their own."""

import functools
from typing import Any, Optional, Tuple

from torch import Tensor

from ._attention import BIAS


@functools.lru_cache(None)
def _class(cls: type) -> type:
    """A subclass of ``cls``, the class of a layer. It has no other base, so that a layer can change its class."""

    class Biased(cls):
        """A layer of a cache whose keys carry the biases of its first tokens to the attention function."""

        _is_biased = True
        bias: Optional[Tensor]

        def update(self, *args: Any, **kwargs: Any) -> Tuple[Tensor, Tensor]:
            keys, values = super().update(*args, **kwargs)
            if self.bias is not None:
                setattr(keys, BIAS, self.bias)
            return keys, values

        def _each_row(self, batch: Tensor) -> None:
            if self.bias is not None:
                self.bias = self.bias.index_select(0, batch.to(self.bias.device))

        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(beam_idx)
            self._each_row(beam_idx)

        def batch_repeat_interleave(self, repeats: int) -> None:
            super().batch_repeat_interleave(repeats)
            if self.bias is not None:
                self.bias = self.bias.repeat_interleave(repeats, 0)

        def batch_select_indices(self, indices: Tensor) -> None:
            super().batch_select_indices(indices)
            if self.bias is not None:
                self.bias = self.bias[indices.to(self.bias.device)]

        def crop(self, *args: Any) -> None:
            super().crop(*args)
            if self.bias is not None:
                self.bias = self.bias[..., : self.keys.shape[-2]]

        def reset(self) -> None:
            super().reset()
            self.bias = None

    Biased.__qualname__ = Biased.__name__ = f"Biased{cls.__name__}"
    return Biased


def set_bias(layer: Any, bias: Optional[Tensor]) -> None:
    """Adds ``bias``, ``[batch, kv_heads, tokens]``, to the attention scores of the first tokens of a layer of a cache."""
    if not hasattr(layer, "_is_biased"):
        if bias is None:
            return
        layer.__class__ = _class(type(layer))
    layer.bias = bias
