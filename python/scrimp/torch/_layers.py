"""Finds the linear layers of a model and replaces them."""

import fnmatch
from dataclasses import dataclass
from typing import Dict, Iterable, List, Set, Tuple

from torch import Tensor, nn

#: Attributes of a module with its hooks. Handles of hooks refer to these dictionaries, so a new module gets the same ones.
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)


@dataclass
class Layer:
    """A linear layer and its occurrences in the model."""

    name: str
    module: nn.Module
    places: List[Tuple[nn.Module, str]]

    def weight(self) -> Tensor:
        """The weights, out x in features (Conv1D stores the transpose)."""
        weight = self.module.weight.detach()
        return weight.t() if is_conv1d(self.module) else weight

    def replace(self, new: nn.Module) -> None:
        new.train(self.module.training)
        move_hooks(self.module, new)
        for parent, child in self.places:
            setattr(parent, child, new)
        self.module = new


def is_conv1d(module: nn.Module) -> bool:
    """Hugging Face's Conv1D (GPT-2): ``x W + b``. The check by name avoids importing transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module, "weight", None) is not None


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Gives ``new`` the hooks of ``old``, except those that compute its weights (pruning, weight and spectral norm)."""
    for name in _HOOKS:
        if name in old.__dict__:
            new.__dict__[name] = old.__dict__[name]
    for key, hook in list(new._forward_pre_hooks.items()):
        if type(hook).__module__.startswith("torch.nn.utils."):
            del new._forward_pre_hooks[key]


def _is_linear(module: nn.Module) -> bool:
    """A linear layer with PyTorch's computation. A subclass or an instance with its own ``forward`` computes something else."""
    if "forward" in module.__dict__:
        return False
    return (isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward) or is_conv1d(module)


def _adapters(model: nn.Module) -> Set[int]:
    """Modules that a library for adapters trains beside a layer: PEFT's `lora_A` and `lora_B`, and copies of whole layers."""
    found: Set[int] = set()
    for module in model.modules():
        children = module._modules
        frozen = "base_layer" if "base_layer" in children else "original_module" if "modules_to_save" in children else None
        if frozen is not None:
            others = (child for name, child in children.items() if name != frozen and child is not None)
            found.update(id(m) for child in others for m in child.modules())
    return found


def is_skipped(name: str, skip: Iterable[str]) -> bool:
    """Whether ``skip`` has the name, its last parts or a pattern of it."""
    return any(fnmatch.fnmatchcase(name, s) or name == s or name.endswith("." + s) for s in skip)


@dataclass
class Found:
    """The layers to compress in the model's order, and the names of modules that stay dense although they multiply matrices."""

    layers: List[Layer]
    dense: List[str]


def linear_layers(model: nn.Module, skip: Iterable[str]) -> Found:
    """Finds the linear layers of a model, without adapters and those that ``skip`` names."""
    found: Dict[int, Layer] = {}
    kept: Set[int] = set()
    dense: List[str] = []
    adapters = _adapters(model)
    for parent_name, parent in model.named_modules():
        # named_children() would omit the second occurrence of a module.
        for child, module in parent._modules.items():
            name = f"{parent_name}.{child}" if parent_name else child
            if module is None or id(module) in adapters:
                continue
            if not _is_linear(module):
                if _multiplies(module) and not is_skipped(name, skip):
                    dense.append(name)
            # nn.MultiheadAttention passes the weight of its projection to a fused kernel and never calls the module.
            elif is_skipped(name, skip) or isinstance(parent, nn.MultiheadAttention) or module.weight.numel() == 0:
                kept.add(id(module))
            elif id(module) in found:
                found[id(module)].places.append((parent, child))
            else:
                found[id(module)] = Layer(name, module, [(parent, child)])
    return Found([layer for key, layer in found.items() if key not in kept], dense)


def _multiplies(module: nn.Module) -> bool:
    """Whether a module is a linear layer of another kind: a subclass of nn.Linear, or experts with a matrix each."""
    if getattr(module, "weight_packed", None) is not None or hasattr(module, "_packed"):
        return False
    experts = any(p is not None and p.dim() == 3 and min(p.shape) > 1 for p in module._parameters.values())
    return isinstance(module, nn.Linear) or (experts and not hasattr(module, "kernel_size"))
