"""The codebook formats of scrimp (`docs/src/reference/weight_formats.md`), written from that page."""

import numpy as np

CODEBOOKS = {
    "cb4": [-127, -100, -79, -62, -47, -34, -21, -9, 3, 15, 28, 41, 55, 72, 92, 123],
    "cb3": [-127, -77, -45, -18, 7, 33, 64, 105],
    "cb2": [-127, -44, 18, 90],
}
BYTES = {"cb4": 17, "cb3": 13, "cb2": 9}


def scales(byte):
    """The scales that 8 bits mean."""
    e, m = (byte >> 3 & 15).astype(np.float64), (byte & 7).astype(np.float64)
    magnitude = np.where(e > 0, 2.0 ** (e - 20) * (1 + m / 8), 2.0 ** -19 * m / 8)
    return np.where(byte & 128, -magnitude, magnitude)


def decode_codebook(data, name):
    """The float32 matrix of rows of bytes."""
    blocks = data.reshape(-1, BYTES[name])
    values, c = np.array(CODEBOOKS[name], np.float64), np.arange(32)
    k, j = c // 4, c % 4
    if name == "cb4":
        index = blocks[:, 1 + c % 16] >> (4 * (c // 16)).astype(np.uint8) & 15
    else:
        index = blocks[:, 1 + 4 * (k // 4) + j] >> (2 * (k % 4)).astype(np.uint8) & 3
        if name == "cb3":
            index = index | (blocks[:, 9 + j] >> k.astype(np.uint8) & 1) << 2
    return (scales(blocks[:, :1]) * values[index]).astype(np.float32).reshape(len(data), -1)


def encode_codebook(values, name):
    """Rows of bytes for a matrix: the scale of a group maps its largest weight to the end of the codebook."""
    rows, cols = values.shape
    groups = values.reshape(-1, 32).astype(np.float64)
    known = scales(np.arange(128, dtype=np.uint8))
    largest = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)
    byte = np.abs(np.abs(largest) / 127 - known).argmin(1).astype(np.uint8) | np.where(largest[:, 0] > 0, 128, 0).astype(np.uint8)
    scale = scales(byte)[:, None]
    x = np.where(scale != 0, groups / np.where(scale != 0, scale, 1), 0)
    index = np.abs(x[:, :, None] - np.array(CODEBOOKS[name])).argmin(2).astype(np.uint8)
    out, c = np.zeros((len(groups), BYTES[name]), np.uint8), np.arange(32)
    out[:, 0] = byte
    for c in range(32):
        k, j = c // 4, c % 4
        if name == "cb4":
            out[:, 1 + c % 16] |= index[:, c] << 4 * (c // 16)
        else:
            out[:, 1 + 4 * (k // 4) + j] |= (index[:, c] & 3) << 2 * (k % 4)
            if name == "cb3":
                out[:, 9 + j] |= (index[:, c] >> 2) << k
    return out.reshape(rows, -1)
