"""How the kept tokens of a cache are stored."""

from typing import Protocol

import torch
from torch import Tensor


class Store(Protocol):
    """Keys or values, ``[batch, kv_heads, tokens, dim]``."""

    def get(self) -> Tensor: ...
    def select(self, batch: Tensor) -> "Store": ...
    @property
    def nbytes(self) -> int: ...


class Plain:
    """As the model computes them."""

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def get(self) -> Tensor:
        return self.states

    def select(self, batch: Tensor) -> "Plain":
        return Plain(self.states.index_select(0, batch))

    @property
    def nbytes(self) -> int:
        return self.states.numel() * self.states.element_size()


class Int8:
    """8 bits, one scale per token and head; unpacked for each attention."""

    def __init__(self, states: Tensor) -> None:
        self.dtype = states.dtype
        x = states.float()
        self.scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        self.codes = (x / self.scale).round().to(torch.int8)
        self.scale = self.scale.to(torch.bfloat16 if states.dtype == torch.bfloat16 else torch.float32)

    def get(self) -> Tensor:
        return (self.codes.float() * self.scale).to(self.dtype)

    def select(self, batch: Tensor) -> "Int8":
        new = object.__new__(Int8)
        new.dtype, new.scale, new.codes = self.dtype, self.scale.index_select(0, batch), self.codes.index_select(0, batch)
        return new

    @property
    def nbytes(self) -> int:
        return self.codes.numel() + self.scale.numel() * self.scale.element_size()


STORES = {"model": Plain, "int8": Int8}
