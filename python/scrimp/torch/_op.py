"""``torch.ops.scrimp.sparse_linear``: the kernel as an operator for torch.compile, autograd and torch.export.

An operator takes tensors and numbers, so a packed matrix has a number in a table of this process: a hash of its bytes. A program that
was exported or traced therefore multiplies with the same weights in another process, or fails if that process does not have them. The
number is passed in a tensor: a plain int would be a constant of the compiled graph, and every layer would compile a graph.
"""

import weakref
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from .._scrimp import PackedMatrix

_matrices: "weakref.WeakValueDictionary[int, PackedMatrix]" = weakref.WeakValueDictionary()


def register(packed: PackedMatrix) -> Tuple[PackedMatrix, Tensor]:
    """The matrix, or an equal one that the table has, and its number. The table does not keep matrices alive."""
    number = packed.fingerprint
    packed = _matrices.setdefault(number, packed)
    return packed, torch.tensor([number], dtype=torch.int64, device="cpu")


def _find(number: Tensor) -> PackedMatrix:
    packed = _matrices.get(int(number))
    if packed is None:
        raise RuntimeError(
            f"this process does not have the packed matrix {int(number):x}: an exported or traced program contains no packed weights. "
            "Load the compressed model first, with scrimp.torch.load_compressed or torch.load, and keep it"
        )
    return packed


def run(packed: PackedMatrix, x: Tensor, bias: Optional[Tensor]) -> Tensor:
    """The kernel itself, without the dispatcher."""
    shape = x.shape
    if not shape or shape[-1] != packed.cols:
        raise ValueError(f"the input has shape {tuple(shape)}; its last dimension must be {packed.cols}")
    if not x.is_contiguous():
        x = x.contiguous()
    out = x.new_empty((*shape[:-1], packed.rows))
    packed.linear(x, bias, out)
    return out


def _forward(x: Tensor, number: Tensor, bias: Optional[Tensor], out_features: int) -> Tensor:
    packed = _find(number)
    if packed.rows != out_features:
        raise ValueError(f"the matrix has {packed.rows} rows, and {out_features} are expected")
    return run(packed, x, bias)


def _forward_fake(x: Tensor, number: Tensor, bias: Optional[Tensor], out_features: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _input_grad(grad: Tensor, number: Tensor, in_features: int) -> Tensor:
    return grad @ dense(_find(number)).to(grad.dtype)


def _input_grad_fake(grad: Tensor, number: Tensor, in_features: int) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], in_features))


def dense(packed: PackedMatrix) -> Tensor:
    """The weights, float32."""
    out = torch.empty(packed.rows, packed.cols, dtype=torch.float32, device="cpu")
    packed.dense(out)
    return out


def _setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, number, bias, _ = inputs
    ctx.save_for_backward(number)
    ctx.in_features = x.shape[-1]
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> Any:
    (number,) = ctx.saved_tensors
    x_grad = bias_grad = None
    if ctx.needs_input_grad[0]:
        x_grad = torch.ops.scrimp.sparse_linear_input_grad(grad, number, ctx.in_features)
    if ctx.needs_input_grad[2]:
        bias_grad = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
    return x_grad, None, bias_grad, None


_library = torch.library.Library("scrimp", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_library.define("sparse_linear(Tensor x, Tensor matrix, Tensor? bias, SymInt out_features) -> Tensor", tags=_TAGS)
_library.define("sparse_linear_input_grad(Tensor grad, Tensor matrix, SymInt in_features) -> Tensor", tags=_TAGS)
_library.impl("sparse_linear", _forward, "CPU")
_library.impl("sparse_linear_input_grad", _input_grad, "CPU")
torch.library.register_fake("scrimp::sparse_linear", _forward_fake, lib=_library)
torch.library.register_fake("scrimp::sparse_linear_input_grad", _input_grad_fake, lib=_library)
torch.library.register_autograd("scrimp::sparse_linear", _backward, setup_context=_setup_context, lib=_library)

sparse_linear = torch.ops.scrimp.sparse_linear.default
