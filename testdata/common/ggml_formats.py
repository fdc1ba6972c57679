"""Quantize and dequantize with the reference code: the `gguf` package, and llama.cpp's own library where it has no code."""

import ctypes
import os
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

Q2_0 = 42  # the gguf package does not have it yet
TYPES = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K, T.Q2_K, T.Q3_K, T.IQ4_NL,
         T.IQ4_XS, T.IQ3_S, T.IQ3_XXS, T.IQ2_S, T.IQ2_XS, T.IQ2_XXS, T.IQ1_M, T.IQ1_S, T.TQ1_0, T.TQ2_0, T.Q1_0, Q2_0,
         T.MXFP4, T.NVFP4]
BY_GGUF = {T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.TQ1_0, T.TQ2_0}
WEIGHTED = {T.IQ2_XXS, T.IQ2_XS, T.IQ1_S, T.IQ1_M}
SIZES = {**GGML_QUANT_SIZES, T.Q1_0: (128, 18), Q2_0: (64, 18)}


def ggml():
    """llama.cpp's own library, where `gguf` has no code: SCRIMP_GGML, or that of llama-cpp-python."""
    path = os.environ.get("SCRIMP_GGML")
    if not path:
        import llama_cpp

        path = pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
                                            ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return library


def encode(values, kind):
    """A float32 matrix as the bytes of `kind`: uint8 `[rows, bytes per row]`."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if kind in BY_GGUF or kind in (T.F32, T.F16):
        rows = quantize(values, kind) if kind not in (T.F32, T.F16) else values.astype("<f4" if kind == T.F32 else "<f2")
        return np.ascontiguousarray(rows).view(np.uint8)
    block, size = SIZES[kind]
    rows, cols = values.shape
    out = np.zeros((rows, cols // block * size), np.uint8)
    weights = np.ones(cols, np.float32)  # the importance of columns, which some types need
    library = ggml()
    library.ggml_quantize_init(int(kind))
    written = library.ggml_quantize_chunk(int(kind), values.ctypes.data, out.ctypes.data, 0, rows, cols,
                                          weights.ctypes.data if kind in WEIGHTED else None)
    assert written == out.nbytes
    return out


def decode(data, kind):
    """The float32 matrix that the bytes stand for."""
    if kind in (T.F32, T.F16):
        return data.view("<f4" if kind == T.F32 else "<f2").astype(np.float32)
    if kind in (T.Q1_0, Q2_0):
        return _dequantize_few_bits(data, 1 if kind == T.Q1_0 else 2)
    return dequantize(data, kind)


def _dequantize_few_bits(data, bits):
    """`dequantize_row_q1_0` and `dequantize_row_q2_0` of llama.cpp."""
    blocks = data.reshape(-1, 18)
    d = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    q = blocks[:, 2:, None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8((1 << bits) - 1)
    q = q.reshape(len(blocks), -1).astype(np.float32)
    return (d * (2 * q - 1 if bits == 1 else q - 1)).reshape(len(data), -1)
