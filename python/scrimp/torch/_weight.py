"""``SparseLinear.weight``: a tensor without memory that unpacks the weights when an operation reads their values.

Shape, type and device cost nothing, so that libraries may check them in each call. Operations in place unpack the weights, change
them and pack them again: an adapter can be merged. The shared memory of a dense weight does not exist: views are copies, and an
operation in place on such a copy is an error.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree

from . import _op

_get = {name: getattr(Tensor, name).__get__ for name in ("data", "requires_grad", "grad")}
_set = {name: getattr(Tensor, name).__set__ for name in ("data", "requires_grad", "grad")}
_PROPERTIES = (
    "shape", "dtype", "device", "layout", "ndim", "requires_grad", "grad", "grad_fn", "is_leaf", "itemsize", "nbytes", "is_cpu",
    "is_cuda", "is_mps", "is_meta", "is_sparse", "is_sparse_csr", "is_quantized", "is_mkldnn", "is_xla", "is_xpu", "is_nested", "names",
)
_METHODS = (
    "size", "dim", "numel", "nelement", "ndimension", "element_size", "is_floating_point", "is_complex", "is_signed", "is_inference",
    "is_conj", "is_neg", "get_device", "__len__", "__hash__",
)
#: Functions of the shape and type alone.
_METADATA = {getattr(Tensor, name).__get__ for name in _PROPERTIES if hasattr(Tensor, name)} | {
    getattr(Tensor, name) for name in _METHODS
} | {torch.is_floating_point, torch.is_complex, torch.numel}
#: Functions whose result shares the memory of a dense weight.
_VIEWS = {
    "__getitem__", "__get__", "t", "transpose", "permute", "view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze",
    "narrow", "select", "diagonal", "chunk", "split", "unbind", "swapaxes", "movedim", "expand", "expand_as", "alias",
}


def _in_place(func: Any, kwargs: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_") or kwargs.get("out") is not None


class PackedWeight(Tensor):
    """The weights of a :class:`SparseLinear`."""

    _layer: Any
    _packed: Any

    @staticmethod
    def of(layer: Any) -> "PackedWeight":
        """The weights of ``layer``. The result does not keep the layer alive."""
        stub = torch.empty((), dtype=layer.weight_dtype, device="cpu").expand(layer.out_features, layer.in_features)
        self = Tensor._make_subclass(PackedWeight, stub)
        self._layer, self._packed = weakref.ref(layer), layer._packed
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        weight = args[0] if args else None
        if isinstance(weight, PackedWeight):
            if func in (_get["data"], Tensor.detach, torch.detach):
                return weight
            if getattr(func, "__name__", "") == "__set__":
                return weight._set(func, args[1])
            if func is Tensor.requires_grad_:
                weight._set(_set["requires_grad"], *(args[1:] or (kwargs.get("requires_grad", True),)))
                return weight
        if _in_place(func, kwargs):
            target = kwargs.get("out", weight)
            if isinstance(target, PackedWeight):
                return target._change(func, args, kwargs)
        if func is functional.linear and len(args) >= 2 and isinstance(args[1], PackedWeight) and type(args[0]) is Tensor:
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            return args[1]._linear(args[0], bias)
        args, kwargs = _pytree.tree_map(_unpacked, (args, kwargs))
        result = func(*args, **kwargs)
        return _pytree.tree_map(_copy, result) if getattr(func, "__name__", "") in _VIEWS else result

    def _dense(self) -> Tensor:
        layer = self._layer()
        if layer is not None:
            self._packed = layer._packed
        return _op.dense(self._packed).to(self.dtype)

    def _linear(self, x: Tensor, bias: Any) -> Tensor:
        layer = self._layer()
        if layer is None or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return functional.linear(x, self._dense(), bias)
        return _op.sparse_linear(x, layer._matrix, bias, layer.out_features)

    def _set(self, func: Any, value: Any) -> None:
        if func == _set["data"]:
            if value is not self:
                self._repack(value)
        elif (func == _set["requires_grad"] and value) or (func == _set["grad"] and value is not None):
            raise RuntimeError("the weights of a SparseLinear are packed: they cannot be trained")

    def _change(self, func: Any, args: Any, kwargs: Any) -> "PackedWeight":
        dense = self._dense()
        args, kwargs = _pytree.tree_map(lambda x: dense if x is self else _unpacked(x), (args, kwargs))
        with torch.no_grad():
            func(*args, **kwargs)
        self._repack(dense)
        return self

    def _repack(self, dense: Any) -> None:
        layer = self._layer()
        if layer is None:
            raise RuntimeError("the layer of these weights no longer exists")
        if tuple(dense.shape) != tuple(self.shape):
            raise ValueError(f"weights of shape {tuple(dense.shape)} for a layer of {tuple(self.shape)}")
        layer._pack(_unpacked(dense))


class _Copy(Tensor):
    """A copy of packed weights, where a dense layer would have a view."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _in_place(func, kwargs) and isinstance(kwargs.get("out", args[0]), _Copy):
            raise RuntimeError(
                "this tensor is a copy of packed weights, so that a change would have no effect: "
                "change `layer.weight` itself, or a `clone()`"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        return _pytree.tree_map(_copy, result) if getattr(func, "__name__", "") in _VIEWS else result


def _unpacked(x: Any) -> Any:
    return x._dense() if isinstance(x, PackedWeight) else x


def _copy(x: Any) -> Any:
    return x.as_subclass(_Copy) if type(x) is Tensor else x
