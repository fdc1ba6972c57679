"""Writes testdata/formats/: for every stored type the bytes of a small matrix and the float32 values they stand for.

usage: python3 testdata/formats/make.py     (numpy, gguf, llama-cpp-python)

<type>.bin  rows x cols as stored, rows one after another;  <type>.f32  the same matrix dequantized, little endian.
index.json  names, rows and cols. The first rows come out of the reference quantizer (ordinary, all zero, constant, huge,
tiny and alternating values, one outlier); the rest are random bytes, so that every bit pattern of quants and packed scales
is met, with the f16 scales replaced by finite ones.
"""

import pathlib
import sys

import numpy as np
from gguf import GGMLQuantizationType as T

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.ggml_formats import Q2_0, SIZES, TYPES, decode, encode
from common.codebooks import CODEBOOKS, decode_codebook, encode_codebook
from common.tiny import write_json

FORMATS = pathlib.Path(__file__).resolve().parent

COLS, RANDOM_ROWS = 512, 5
# Where the f16 scale (and minimum) of a block is, in bytes.
SCALES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2],
          T.Q6_K: [208], T.Q2_K: [80, 82], T.Q3_K: [108], T.TQ1_0: [52], T.TQ2_0: [64], T.MXFP4: [], T.NVFP4: [], T.IQ1_M: [],
          Q2_0: [0], T.Q1_0: [0], **{kind: [0] for kind in (T.IQ4_NL, T.IQ4_XS, T.IQ3_S, T.IQ3_XXS, T.IQ2_S, T.IQ2_XS, T.IQ2_XXS,
                                                          T.IQ1_S)}}


def designed(rng):
    alternating = np.where(np.arange(COLS) % 2, -1.0, 1.0)
    outlier = rng.normal(0, 0.01, COLS)
    outlier[COLS // 3] = 9.0
    return np.stack([
        rng.normal(0, 0.05, COLS), rng.normal(0, 1, COLS), np.zeros(COLS), np.full(COLS, 0.75), np.full(COLS, -0.3),
        30000.0 * rng.uniform(-1, 1, COLS), 1e-6 * rng.normal(0, 1, COLS), alternating, 3.0 * alternating + 1.0, outlier,
        np.abs(rng.normal(0, 1, COLS)),
    ]).astype(np.float32)


def random_bytes(kind, rng):
    block, size = SIZES[kind]
    if kind in SCALES:
        raw = rng.integers(0, 256, (RANDOM_ROWS * COLS // block, size), dtype=np.uint8)
        for at in SCALES[kind]:
            scales = rng.uniform(-2, 2, len(raw)).astype(np.float16)
            scales[::7] = np.float16(6e-8)  # the smallest subnormal
            raw[:, at:at + 2] = scales[:, None].view(np.uint8)
        if kind == T.MXFP4:
            raw[:, 0] = np.minimum(raw[:, 0], 252)  # larger exponents overflow
            raw[:4, 0] = np.arange(4)
        if kind == T.IQ1_M:  # its scale is in the upper nibbles of four bytes
            bits = rng.uniform(-2, 2, len(raw)).astype(np.float16).view(np.uint16)
            for i in range(4):
                raw[:, 49 + 2 * i] = raw[:, 49 + 2 * i] & 15 | ((bits >> (4 * i) & 15) << 4).astype(np.uint8)
        return raw.reshape(RANDOM_ROWS, -1)
    bits = rng.integers(0, 256, (RANDOM_ROWS, COLS * size), dtype=np.uint8)
    exponent = {T.F32: (0x7F800000, "<u4"), T.F16: (0x7C00, "<u2"), T.BF16: (0x7F80, "<u2")}[kind]
    words = bits.view(exponent[1])
    words[(words & exponent[0]) == exponent[0]] &= ~np.array(exponent[0], words.dtype) & np.array(-1).astype(words.dtype)
    return words.view(np.uint8)


def main():
    entries = []
    for number, kind in enumerate(TYPES):
        rng = np.random.default_rng(100 + number)
        stored = np.concatenate([encode(designed(rng), kind), random_bytes(kind, rng)])
        values = decode(stored, kind)
        assert np.isfinite(values).all() and values.shape[1] == COLS, kind
        name = getattr(kind, "name", "Q2_0")
        name = name.lower() if kind in (T.F32, T.F16, T.BF16) else name
        (FORMATS / f"{name}.bin").write_bytes(stored.tobytes())
        (FORMATS / f"{name}.f32").write_bytes(values.astype("<f4").tobytes())
        entries.append({"type": name, "rows": len(stored), "cols": COLS})
    for name in CODEBOOKS:
        rng = np.random.default_rng(int(name[2:]))
        values = np.clip(designed(rng), -10, 10)
        stored = encode_codebook(values, name)
        stored = np.concatenate([stored, rng.integers(0, 256, (RANDOM_ROWS, stored.shape[1]), dtype=np.uint8)])
        (FORMATS / f"{name}.bin").write_bytes(stored.tobytes())
        (FORMATS / f"{name}.f32").write_bytes(decode_codebook(stored, name).astype("<f4").tobytes())
        entries.append({"type": name, "rows": len(stored), "cols": COLS})
    write_json(FORMATS / "index.json", {"matrices": entries})


if __name__ == "__main__":
    main()
