"""Experts whose matrices are stacked in 3-dimensional parameters (mixture-of-experts models of transformers 5)."""

from typing import Any, Callable, List, Tuple

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """A linear layer per expert and matrix, with the computation of transformers' experts.

    ``rest`` is the original module without its stacked matrices: it has the activation, the gate and a norm.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.into = "gate_up_proj" if original.has_gate else "up_proj"
        self.num_experts = original.down_proj.shape[0]
        self.add_module(self.into, _unstacked(original, self.into))
        self.down_proj = _unstacked(original, "down_proj")
        self.rest = original

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        rest, into, out = self.rest, getattr(self, self.into), torch.zeros_like(hidden_states)
        for expert in torch.unique(top_k_index).tolist():
            if expert >= self.num_experts:  # of another device
                continue
            token, place = torch.where(top_k_index == expert)
            x = into[expert](hidden_states[token])
            x = rest._apply_gate(x) if rest.has_gate else rest.act_fn(x)
            x = self.down_proj[expert](x)
            if rest.has_post_expert_norm:
                x = rest.post_expert_norm(x)
            out = out.index_add(0, token, (x * top_k_weights[token, place, None]).to(out.dtype))
        return out


def _unstacked(original: nn.Module, name: str) -> nn.ModuleList:
    """A layer per expert, whose weight is a view of the stacked matrix."""
    stack = getattr(original, name)
    bias = getattr(original, f"{name}_bias") if original.has_bias else None
    layers = nn.ModuleList()
    for expert in range(stack.shape[0]):
        weight = stack.detach()[expert].t() if original.is_transposed else stack.detach()[expert]
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=stack.requires_grad)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach()[expert], requires_grad=bias.requires_grad)
        layers.append(layer)
    return layers


def is_stacked(module: nn.Module) -> bool:
    """Whether a module has the interface of transformers' stacked experts (``use_experts_implementation``)."""
    has_gate = getattr(module, "has_gate", None)
    into = getattr(module, "gate_up_proj" if has_gate else "up_proj", None)
    down = getattr(module, "down_proj", None)
    stacks = all(isinstance(stack, nn.Parameter) and stack.dim() == 3 for stack in (into, down))
    names = ("has_bias", "has_post_expert_norm", "is_transposed", "_apply_gate", "act_fn" if not has_gate else "has_gate")
    return has_gate is not None and stacks and all(hasattr(module, name) for name in names)


def unstack(model: nn.Module, skipped: Callable[[str], bool]) -> List[Tuple[nn.Module, str, nn.Module, dict]]:
    """Replaces stacked experts by :class:`Experts`. Returns the arguments of :func:`restore`."""
    places = [
        (parent, child, f"{name}.{child}" if name else child, module)
        for name, parent in model.named_modules() for child, module in parent._modules.items() if module is not None
    ]
    done: List[Tuple[nn.Module, str, nn.Module, dict]] = []
    for parent, child, name, module in places:
        if is_stacked(module) and not skipped(name):
            experts = Experts(module)
            done.append((parent, child, module, dict(module._parameters)))
            for matrix in (experts.into, "down_proj"):
                module._parameters.pop(matrix)
                module._parameters.pop(f"{matrix}_bias", None)
            setattr(parent, child, experts.train(module.training))
    return done


def restore(done: List[Tuple[nn.Module, str, nn.Module, dict]]) -> None:
    """Undoes :func:`unstack`."""
    for parent, child, module, parameters in done:
        module._parameters.clear()
        module._parameters.update(parameters)
        setattr(parent, child, module)


def unstack_for(model: nn.Module, state_dict: Any) -> None:
    """Replaces the stacked experts for which a state_dict has the layers of experts."""
    unstack(model, lambda name: not any(key.startswith(f"{name}.down_proj.") for key in state_dict))
