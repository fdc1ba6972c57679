"""Fused optimizers: the backward pass updates the touched rows and makes no gradient tensors."""

from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class FusedOptimizer:
    """An optimizer inside the backward pass. Subclasses name an optimizer of the Rust half and the shape of its state."""

    lr: float
    eps: float = 1e-10
    name = ""

    def state_shape(self, rows: int, dim: int) -> Optional[Tuple[int, ...]]:
        """The shape of the state of a table of ``rows`` rows of ``dim`` values; ``None`` without state."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sgd(FusedOptimizer):
    """``w -= lr g``."""

    eps: float = 0.0
    name = "sgd"

    def state_shape(self, rows: int, dim: int) -> None:
        return None


@dataclass(frozen=True)
class Adagrad(FusedOptimizer):
    """``s += g^2; w -= lr g / (sqrt(s) + eps)``, like ``torch.optim.Adagrad`` with a sparse gradient."""

    name = "adagrad"

    def state_shape(self, rows: int, dim: int) -> Tuple[int, int]:
        return rows, dim


@dataclass(frozen=True)
class RowWiseAdagrad(FusedOptimizer):
    """Adagrad with one state per row, which grows by the mean of ``g^2``."""

    name = "rowwise_adagrad"

    def state_shape(self, rows: int, dim: int) -> Tuple[int]:
        return (rows,)
