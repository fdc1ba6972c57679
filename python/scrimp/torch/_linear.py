"""``SparseLinear``: ``torch.nn.Linear`` with packed weights."""

from typing import Any, Optional

import torch
from torch import Tensor, nn

from .._scrimp import InputStatistics, PackedMatrix, compress_matrix
from . import _op
from ._eager import is_plain
from ._weight import PackedWeight

#: Keys of a layer in a state_dict, besides ``bias``.
PACKED, SHAPE = "weight_packed", "weight_shape"
#: ``weight_shape`` is [index into FORMATS, out_features, in_features].
FORMATS = ("bf16", "int8", "int4", "sparse-bf16", "sparse-int8", "sparse-int4")


class SparseLinear(nn.Linear):
    """``y = x W^T + b`` on the CPU, with ``W`` in one of scrimp's formats. ``x`` and ``b`` have gradients, ``W`` has none.

    ``x`` is float32, bfloat16 or float16, and so is the result. Kernels round ``x``: to bfloat16 for bf16 weights, to 8 bits with a
    scale per row for int8, and with a scale per 32 values for int4. Sums are float32 or exact integers.

    The layer is an ``nn.Linear`` for libraries such as PEFT. Its ``weight`` is no parameter.
    """

    in_features: int
    out_features: int
    bias: Optional[Tensor]

    def __init__(self, packed: PackedMatrix, bias: Optional[Tensor] = None, dtype: Optional[torch.dtype] = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = packed.cols, packed.rows
        if bias is not None:
            if tuple(bias.shape) != (packed.rows,):
                raise ValueError(f"the bias has shape {tuple(bias.shape)}, not ({packed.rows},)")
            bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", bias)
        #: The type of ``weight``, a dense layer's type of weights.
        self.weight_dtype = dtype or (torch.float32 if bias is None else bias.dtype)
        self._set_packed(packed)

    def _set_packed(self, packed: PackedMatrix) -> None:
        self._packed, number = _op.register(packed)
        self.register_buffer("_matrix", number, persistent=False)

    def _pack(self, weight: Tensor) -> None:
        """Packs other weights in the same format."""
        dense_format = self.format.removeprefix("sparse-")
        shape = (self.out_features, self.in_features)
        self._set_packed(compress_matrix(weight.detach().contiguous(), shape, ("magnitude", 0.0, dense_format), None))

    def reset_parameters(self) -> None:
        raise RuntimeError("the weights of a SparseLinear are packed: they cannot be reset")

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        bias: Optional[Tensor] = None,
        *,
        sparsity: float = 0.0,
        method: Optional[str] = None,
        format: str = "bf16",
        inputs: Optional[InputStatistics] = None,
    ) -> "SparseLinear":
        """Prunes ``weight`` (out x in features) by ``method`` and packs it. Without a method it is packed unchanged.

        If the sparse form of the format saves nothing, the dense form is used.
        """
        if weight.dim() != 2 or weight.numel() == 0:
            raise ValueError(f"weights of shape {tuple(weight.shape)} are no matrix")
        if method is None:
            method, sparsity = "magnitude", 0.0
        rows, cols = weight.shape
        weight = weight.detach().contiguous()
        packed = compress_matrix(weight, (rows, cols), (method, float(sparsity), format), inputs)
        return cls(packed, bias, weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if is_plain(x, self.bias):
            return _op.run(self._packed, x, self.bias)
        return _op.sparse_linear(x, self._matrix, self.bias, self.out_features)

    @property
    def format(self) -> str:
        """``bf16``, ``int8``, ``int4``, or ``sparse-`` and one of these."""
        return self._packed.format

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self._packed.nbytes

    @property
    def sparsity(self) -> float:
        """Share of the weights that are not stored."""
        return 1 - self._packed.stored / (self.in_features * self.out_features)

    @property
    def weight(self) -> Tensor:
        """The weights, without gradient. Operations that read their values unpack them; operations in place pack them again, in the
        same format and without pruning.
        """
        view = self.__dict__.get("_weight_view")
        if view is None or view.dtype != self.weight_dtype:
            view = self.__dict__["_weight_view"] = PackedWeight.of(self)
        return view

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                "the weights of a SparseLinear are packed: they cannot be trained or replaced by a parameter. "
                "Train the dense model, then compress it; or change the values with `layer.weight.data = tensor`"
            )
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"format={self.format}, sparsity={self.sparsity:.0%}, bytes={self.nbytes}"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> "SparseLinear":
        device = fn(self._matrix.clone()).device
        if device.type != "cpu":
            raise RuntimeError(
                f"SparseLinear runs on the CPU and cannot be moved to {device}. Keep the model on the CPU, or leave layers that "
                "belong on another device out with compress(..., skip=...)"
            )
        number = self._matrix
        self.weight_dtype = fn(torch.empty(0, dtype=self.weight_dtype, device="cpu")).dtype
        super()._apply(fn, recurse)
        self._matrix = number  # also where fn makes empty tensors
        return self

    def __getstate__(self) -> Any:
        state = self.__dict__.copy()
        state.pop("_weight_view", None)
        return state

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("weight_dtype", torch.float32 if self.bias is None else self.bias.dtype)
        self._buffers = dict(self._buffers)
        self._set_packed(self._packed)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        packed = self._packed
        destination[prefix + PACKED] = torch.frombuffer(bytearray(packed.to_bytes()), dtype=torch.uint8)
        destination[prefix + SHAPE] = torch.tensor([FORMATS.index(packed.format), packed.rows, packed.cols])

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        if own.pop(prefix + "weight", None) is not None:
            error_msgs.append(f"{prefix}weight is dense: load it into the dense model, then compress that")
        elif prefix + PACKED not in own or prefix + SHAPE not in own:
            missing_keys.extend(prefix + key for key in (PACKED, SHAPE) if prefix + key not in own)
        else:
            try:
                packed = unpack_state(own[prefix + PACKED], own[prefix + SHAPE])
                if (packed.rows, packed.cols) != (self.out_features, self.in_features):
                    raise ValueError(
                        f"it is {packed.rows} x {packed.cols}, the layer {self.out_features} x {self.in_features}"
                    )
                self._set_packed(packed)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{prefix}{PACKED}: {error}")
        own.pop(prefix + PACKED, None)
        own.pop(prefix + SHAPE, None)
        super()._load_from_state_dict(own, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)


def unpack_state(packed: Tensor, shape: Tensor) -> PackedMatrix:
    """The matrix of a state_dict."""
    if packed.dtype != torch.uint8 or shape.numel() != 3 or shape.is_floating_point():
        raise ValueError("it is no packed matrix of scrimp")
    code, rows, cols = (int(n) for n in shape)
    if not 0 <= code < len(FORMATS) or rows < 1 or cols < 1:
        raise ValueError("it has a format or shape that this version of scrimp does not know")
    data = packed.detach().cpu().contiguous().numpy().tobytes()
    return PackedMatrix.from_bytes(FORMATS[code], rows, cols, data)
