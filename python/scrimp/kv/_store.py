"""Storage of the kept tokens of a cache."""

from typing import Dict, Optional, Protocol, Type

import torch
from torch import Tensor


class Store(Protocol):
    """Keys or values, ``[batch, kv_heads, tokens, dim]``."""

    def get(self) -> Tensor: ...
    def truncate(self, tokens: int) -> object: ...
    def select(self, batch: Tensor) -> "Store": ...
    @property
    def tokens(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class Growing:
    """Keys or values that grow token by token, in a buffer with spare room."""

    def __init__(self, states: Tensor) -> None:
        self.memory, self.length = states, states.shape[2]

    def append(self, states: Tensor) -> Tensor:
        """Appends tokens and returns all of them."""
        end = self.length + states.shape[2]
        if end > self.memory.shape[2]:
            # Room for an eighth more makes copies rare.
            room = max(end, self.length + self.length // 8, self.length + 64) - self.length
            self.memory = torch.nn.functional.pad(self.get(), (0, 0, 0, room))
        self.memory[:, :, self.length : end] = states
        self.length = end
        return self.get()

    def truncate(self, tokens: int) -> Tensor:
        """Removes the last tokens and returns the others."""
        self.length -= tokens
        return self.get()

    def get(self) -> Tensor:
        return self.memory[:, :, : self.length]

    def select(self, batch: Tensor) -> "Growing":
        new = Growing(self.memory.index_select(0, batch))
        new.length = self.length
        return new

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer, spare room included."""
        return self.memory.numel() * self.memory.element_size()


class Int8:
    """int8 with one scale per token and head, dequantized for each attention call."""

    def __init__(self, states: Tensor) -> None:
        self.dtype = states.dtype
        x = states.float()
        self.scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        self.codes = (x / self.scale).round().to(torch.int8)
        self.scale = self.scale.to(torch.bfloat16 if states.dtype == torch.bfloat16 else torch.float32)

    def get(self) -> Tensor:
        return (self.codes.float() * self.scale).to(self.dtype)

    def truncate(self, tokens: int) -> None:
        """Removes the last tokens."""
        kept = self.tokens - tokens
        self.codes, self.scale = self.codes[:, :, :kept], self.scale[:, :, :kept]

    def select(self, batch: Tensor) -> "Int8":
        new = object.__new__(Int8)
        new.dtype, new.scale, new.codes = self.dtype, self.scale.index_select(0, batch), self.codes.index_select(0, batch)
        return new

    @property
    def tokens(self) -> int:
        return self.codes.shape[2]

    @property
    def nbytes(self) -> int:
        return self.codes.numel() + self.scale.numel() * self.scale.element_size()


STORES: Dict[str, Optional[Type[Store]]] = {"model": None, "int8": Int8}
"""The store of the kept tokens by format name; ``None``: in the model's type."""
