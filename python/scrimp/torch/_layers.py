"""Finds the linear layers of a model and replaces them."""

import fnmatch
from dataclasses import dataclass
from typing import Dict, Iterable, List, Tuple

from torch import Tensor, nn


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
        for parent, child in self.places:
            setattr(parent, child, new)
        self.module = new


def is_conv1d(module: nn.Module) -> bool:
    """Hugging Face's Conv1D (GPT-2): ``x W + b``. The check by name avoids importing transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module, "weight", None) is not None


def _is_linear(module: nn.Module) -> bool:
    return (isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward) or is_conv1d(module)


def _skipped(name: str, skip: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, s) or name == s or name.endswith("." + s) for s in skip)


def linear_layers(model: nn.Module, skip: Iterable[str]) -> Tuple[List[Layer], List[str]]:
    """The layers to compress, in the model's order, and the names of skipped layers."""
    found: Dict[int, Layer] = {}
    skipped: Dict[str, int] = {}
    for parent_name, parent in model.named_modules():
        # named_children() would omit the second occurrence of a module.
        for child, module in parent._modules.items():
            if module is None or not _is_linear(module):
                continue
            name = f"{parent_name}.{child}" if parent_name else child
            # nn.MultiheadAttention passes the weight of its projection to a fused kernel and never calls the module.
            if _skipped(name, skip) or isinstance(parent, nn.MultiheadAttention) or module.weight.numel() == 0:
                skipped[name] = id(module)
            elif id(module) in found:
                found[id(module)].places.append((parent, child))
            else:
                found[id(module)] = Layer(name, module, [(parent, child)])
    kept = set(skipped.values())
    return [layer for key, layer in found.items() if key not in kept], list(skipped)
