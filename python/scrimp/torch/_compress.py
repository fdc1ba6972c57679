"""``compress``: replaces the linear layers of a model by packed ones."""

import warnings
from typing import Iterable, Iterator, List, Optional, Tuple

import torch
from torch import nn

from .._scrimp import InputStatistics
from . import _calibrate, _experts
from ._calibrate import Calibration
from ._layers import Layer, is_conv1d, is_skipped, linear_layers
from ._linear import SparseLinear

_METHODS = ("magnitude", "wanda", "sparsegpt")
_FORMATS = ("bf16", "int8", "int4")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def compress(
    model: nn.Module,
    sparsity: float = 0.5,
    method: Optional[str] = "magnitude",
    format: str = "bf16",
    calibration: Optional[Calibration] = None,
    skip: Iterable[str] = ("lm_head",),
    *,
    memory: int = 2 << 30,
) -> nn.Module:
    """Replaces the linear layers of ``model`` in place by :class:`SparseLinear` and returns the model.

    Args:
        model: any module on the CPU. ``nn.Linear`` (at any depth) and Hugging Face's ``Conv1D`` are replaced; the output projection
            of ``nn.MultiheadAttention`` stays, since PyTorch never calls it as a module, and so do adapters (PEFT's LoRA). Hooks
            stay. The stacked experts of transformers become a layer per expert. Other modules with large matrices (subclasses of
            ``nn.Linear`` with a forward of their own) stay dense, with a warning.
        sparsity: share of zero weights, in [0, 1). Zero weights stay zero.
        method: ``magnitude`` (Han et al. 2015), ``wanda`` (arXiv 2306.11695) or ``sparsegpt`` (arXiv 2301.00774). ``None`` packs
            the weights of a pruned model unchanged and ignores ``sparsity``.
        format: ``bf16``, ``int8`` (a scale per row) or ``int4`` (a scale per 32 columns).
        calibration: data for ``wanda`` and ``sparsegpt``: an iterable of batches (a tensor, tuple or dict: the arguments of the model),
            or a function that runs the model it receives. A few hundred sequences suffice. If the statistics exceed ``memory``, the
            data is read more than once; a generator is therefore converted to a list.
        skip: layers to keep: a full name, its last parts, or a pattern (``"*.mlp.*"``).
        memory: size of the statistics of ``sparsegpt`` in bytes.

    Raises:
        ValueError, TypeError: an argument or a layer is invalid. The model is unchanged.
    """
    sparsity, skip = _arguments(model, sparsity, method, format, skip)
    calibrated = method in ("wanda", "sparsegpt")
    if calibrated and calibration is None:
        raise ValueError(f"{method} needs calibration data: calibration=[batch, ...]; magnitude needs none")
    unstacked, changed = _experts.unstack(model, lambda name: is_skipped(name, skip)), False
    try:
        layers = _found(model, skip)
        pairs = _with_statistics(model, layers, method, calibration, memory) if calibrated else ((layer, None) for layer in layers)
        for layer, inputs in pairs:
            _replace(layer, method if inputs or not calibrated else "magnitude", sparsity, format, inputs)
            changed = True
    except Exception:
        if not changed:
            _experts.restore(unstacked)
        raise
    return model


def _arguments(
    model: nn.Module, sparsity: float, method: Optional[str], format: str, skip: Iterable[str]
) -> Tuple[float, Tuple[str, ...]]:
    """Checks arguments. Returns the sparsity and the names to skip."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if method is not None and method not in _METHODS:
        raise ValueError(f"there is no method {method!r}; these are: {', '.join(_METHODS)}, or None")
    if format not in _FORMATS:
        raise ValueError(f"there is no format {format!r}; these are: {', '.join(_FORMATS)}")
    sparsity = float(sparsity)
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), not {sparsity}")
    if type(model) is nn.Linear or is_conv1d(model):
        raise TypeError("the model is itself a linear layer: use SparseLinear.from_dense")
    return sparsity, (skip,) if isinstance(skip, str) else tuple(skip)


def _found(model: nn.Module, skip: Tuple[str, ...]) -> List[Layer]:
    """The layers to compress. Warns of modules that stay dense."""
    found = linear_layers(model, skip)
    for layer in found.layers:
        _check(layer)
    if found.dense:
        warnings.warn(
            f"{len(found.dense)} modules stay dense: {_listed(found.dense)}. They are linear layers with a forward of their own, or "
            "experts of an unknown kind; `skip` silences this warning",
            stacklevel=3,
        )
    if not found.layers:
        raise ValueError("the model has no linear layer to compress (all skipped, or compressed already?)")
    return found.layers


def _with_statistics(
    model: nn.Module, layers: List[Layer], method: str, calibration: Calibration, memory: int
) -> Iterator[Tuple[Layer, Optional[InputStatistics]]]:
    """The layers with the statistics of their inputs; ``None`` for layers that the data do not reach."""
    if not callable(calibration) and iter(calibration) is calibration:
        calibration = list(calibration)
    unseen: List[str] = []
    groups = list(_calibrate.groups(layers, method, memory))
    for group in groups:
        statistics = _calibrate.collect(model, group, method, calibration)
        if not statistics and len(groups) == 1:
            raise ValueError("no layer was called: the calibration data does not reach these layers")
        for layer in group:
            yield layer, statistics.get(layer.name)
        unseen += [layer.name for layer in group if layer.name not in statistics]
    if unseen:
        warnings.warn(
            f"the calibration data never reaches {len(unseen)} layers ({_listed(unseen)}): they are pruned by magnitude",
            stacklevel=3,
        )


def _listed(names: List[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check(layer: Layer) -> None:
    """Raises an error if the layer cannot be compressed."""
    weight = layer.module.weight
    if weight.device.type != "cpu":
        raise ValueError(f"{layer.name} is on {weight.device}; scrimp runs on the CPU: model.cpu() first, or skip it")
    if weight.dtype not in _DTYPES:
        raise TypeError(f"{layer.name} has {weight.dtype} weights; compress float32, bfloat16 or float16 ones, or skip it")
    if not torch.isfinite(weight).all():
        raise ValueError(f"{layer.name} has a weight that is NaN or infinite")
    if type(weight) not in (nn.Parameter, torch.Tensor):
        raise TypeError(f"{layer.name} has weights of type {type(weight).__name__}: skip it")


def _replace(layer: Layer, method, sparsity, format, inputs) -> None:
    try:
        new = SparseLinear.from_dense(
            layer.weight(), layer.module.bias, sparsity=sparsity, method=method, format=format, inputs=inputs
        )
    except ValueError as error:
        raise ValueError(f"{layer.name}: {error}") from None
    layer.replace(new)
