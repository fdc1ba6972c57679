"""``load_compressed``: loads the state_dict of a compressed model into a dense one."""

from typing import Any, Mapping

import torch
from torch import Tensor, nn

from ._linear import PACKED, SHAPE, SparseLinear, unpack_state


def load_compressed(model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any:
    """Loads the result of ``compress(model).state_dict()`` into ``model``, a dense model of the same configuration.

    Replaces the layers with packed weights in the state_dict, then calls ``load_state_dict`` and returns its result.
    """
    modules = dict(model.named_modules())
    for key in state_dict:
        if not key.endswith("." + PACKED):
            continue
        name = key[: -len(PACKED) - 1]
        old = modules.get(name)
        if old is None:
            raise ValueError(f"the model has no layer {name}: is it of the same configuration?")
        if isinstance(old, SparseLinear):
            continue
        if f"{name}.{SHAPE}" not in state_dict:
            raise ValueError(f"{name}.{SHAPE} is missing beside {key}")
        try:
            packed = unpack_state(state_dict[key], state_dict[f"{name}.{SHAPE}"])
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        bias = getattr(old, "bias", None)
        if f"{name}.bias" in state_dict and bias is None:
            bias = torch.empty_like(state_dict[f"{name}.bias"])
        parent, _, child = name.rpartition(".")
        new = SparseLinear(packed, bias)
        setattr(modules[parent], child, new.train(old.training))
    return model.load_state_dict(state_dict, strict=strict)
