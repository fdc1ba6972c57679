"""``load_compressed``: loads the state_dict of a compressed model into a dense one."""

from typing import Any, Dict, Mapping

import torch
from torch import Tensor, nn

from . import _experts
from ._layers import move_hooks
from ._linear import PACKED, SHAPE, SparseLinear, unpack_state


def load_compressed(model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any:
    """Loads the result of ``compress(model).state_dict()`` into ``model``, a dense model of the same configuration.

    Replaces the layers with packed weights in the state_dict, then calls ``load_state_dict`` and returns its result.
    """
    _experts.unstack_for(model, state_dict)
    modules = dict(model.named_modules(remove_duplicate=False))
    replaced: Dict[int, SparseLinear] = {}
    for key in state_dict:
        if not key.endswith("." + PACKED):
            continue
        name = key[: -len(PACKED) - 1]
        old = modules.get(name)
        parent, _, child = name.rpartition(".")
        if id(old) in replaced:  # a layer with several names
            setattr(modules[parent], child, replaced[id(old)])
            continue
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
        new = SparseLinear(packed, bias, old.weight.dtype)
        move_hooks(old, new)
        replaced[id(old)] = new.train(old.training)
        setattr(modules[parent], child, new)
    return model.load_state_dict(state_dict, strict=strict)
