"""``summary``: the size of a compressed model."""

from dataclasses import dataclass

from torch import nn

from ._linear import SparseLinear


@dataclass(frozen=True)
class Summary:
    """Sizes of the weights of a model."""

    #: SparseLinear layers: their number, weights, share of zero weights and bytes.
    layers: int
    weights: int
    sparsity: float
    packed_bytes: int
    #: Size of the same weights in bfloat16.
    dense_bf16_bytes: int
    #: All other parameters and buffers.
    other_bytes: int

    def __str__(self) -> str:
        ratio = self.dense_bf16_bytes / max(self.packed_bytes, 1)
        return (
            f"{self.layers} sparse layers, {self.weights / 1e6:.1f} M weights, {self.sparsity:.1%} zero: "
            f"{self.packed_bytes / 1e6:.1f} MB, {ratio:.2f}x less than in bf16; other parameters {self.other_bytes / 1e6:.1f} MB"
        )


def summary(model: nn.Module) -> Summary:
    """Counts the :class:`SparseLinear` layers of a model."""
    layers = [m for m in model.modules() if isinstance(m, SparseLinear)]
    weights = sum(m.in_features * m.out_features for m in layers)
    stored = sum((1 - m.sparsity) * m.in_features * m.out_features for m in layers)
    others = list(model.parameters()) + list(model.buffers())
    return Summary(
        layers=len(layers),
        weights=weights,
        sparsity=1 - stored / weights if weights else 0.0,
        packed_bytes=sum(m.nbytes for m in layers),
        dense_bf16_bytes=2 * weights,
        other_bytes=sum(t.numel() * t.element_size() for t in others),
    )
