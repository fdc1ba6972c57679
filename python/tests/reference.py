"""Dense layers that compute what the kernels promise, in plain torch: the numeric contract of each format."""

import copy

import torch
from torch import nn

from scrimp.torch import SparseLinear


def rounded(x, format):
    """``x`` as the kernels of a format see it."""
    format = format.removeprefix("sparse-")
    x = x.float()
    if format == "bf16":
        return x.bfloat16().float()
    shape = x.shape
    if format == "int4":
        pad = -shape[-1] % 32
        x = nn.functional.pad(x, (0, pad)).unflatten(-1, (-1, 32))
    largest = x.abs().amax(-1, keepdim=True)
    scale = largest / 127
    x = torch.where(largest > 0, (x * (127 / largest)).round() * scale, 0.0)
    return x.flatten(-2)[..., : shape[-1]] if format == "int4" else x


class Dense(nn.Module):
    """A SparseLinear's weights, multiplied by torch."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight = [layer], layer.weight.float()
        self.bias = layer.bias

    def forward(self, x):
        layer = self.layer[0]
        y = rounded(x, layer.format) @ self.weight.t()
        return (y if layer.bias is None else y + layer.bias.float()).to(x.dtype)


def dense_twin(model):
    """A copy of a compressed model that computes with dense weights."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SparseLinear):
                setattr(parent, name, Dense(child))
    return model


def error(got, want):
    """Largest difference, relative to the largest magnitude."""
    return ((got - want).abs().max() / want.abs().max().clamp_min(1e-9)).item()
