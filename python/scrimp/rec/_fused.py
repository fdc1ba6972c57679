"""Optimizers that update tables during the backward pass: one pass over the rows that a batch touches, and no gradient tensors."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sgd:
    """``w -= lr g``."""

    lr: float
    eps: float = 0.0
    name = "sgd"

    def state_shape(self, rows, width):
        return None


@dataclass(frozen=True)
class Adagrad:
    """``s += g^2; w -= lr g / (sqrt(s) + eps)``: what ``torch.optim.Adagrad`` does with a sparse gradient."""

    lr: float
    eps: float = 1e-10
    name = "adagrad"

    def state_shape(self, rows, width):
        return (rows, width)


@dataclass(frozen=True)
class RowWiseAdagrad:
    """Adagrad with one state for each row, which grows by the mean of ``g^2``."""

    lr: float
    eps: float = 1e-10
    name = "rowwise_adagrad"

    def state_shape(self, rows, width):
        return (rows,)
