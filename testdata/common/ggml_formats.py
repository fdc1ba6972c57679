"""Quantize and dequantize with the reference code: the `gguf` package, and llama.cpp's own library for K-quants."""

import ctypes
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

TYPES = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K]
K_QUANTS = {T.Q4_K, T.Q5_K, T.Q6_K}


def ggml():
    """llama.cpp's own library, for K-quants."""
    import llama_cpp

    library = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
                                            ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return library


def encode(values, kind):
    """A float32 matrix as the bytes of `kind`: uint8 `[rows, bytes per row]`."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if kind not in K_QUANTS:
        rows = quantize(values, kind) if kind not in (T.F32, T.F16) else values.astype("<f4" if kind == T.F32 else "<f2")
        return np.ascontiguousarray(rows).view(np.uint8)
    block, size = GGML_QUANT_SIZES[kind]
    rows, cols = values.shape
    out = np.zeros((rows, cols // block * size), np.uint8)
    written = ggml().ggml_quantize_chunk(kind, values.ctypes.data, out.ctypes.data, 0, rows, cols, None)
    assert written == out.nbytes
    return out


def decode(data, kind):
    """The float32 matrix that the bytes stand for."""
    if kind in (T.F32, T.F16):
        return data.view("<f4" if kind == T.F32 else "<f2").astype(np.float32)
    return dequantize(data, kind)
