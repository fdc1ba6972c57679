"""Golden file of the pruning methods: testdata/pruning/small.json, computed in float64 with NumPy.

usage: python3 testdata/pruning/make.py      (needs numpy)

Weights and inputs come from a generator that the Rust test repeats, so only results are stored. The algorithms are
written from the papers and from the authors' reference code (blocks of 128 columns, inverse by np.linalg), not from ours.
"""

import json
import pathlib

import numpy as np

ROWS, COLS, TOKENS, SOURCES = 8, 160, 96, 6
BLOCK, OWN, ALL = 128, 0.3, 0.3


class Lcg:
    """The 64-bit linear congruential generator of Knuth's MMIX; numbers in [-1, 1)."""

    def __init__(self, seed):
        self.state = seed

    def __call__(self):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 40) / 2**23 - 1.0


def data():
    """Weights [ROWS][COLS] and correlated inputs [TOKENS][COLS], both exact in f32."""
    rng = Lcg(2024)
    w = np.array([[rng() for _ in range(COLS)] for _ in range(ROWS)], dtype=np.float32)
    mix = np.array([[rng() for _ in range(SOURCES)] for _ in range(COLS)], dtype=np.float32)
    x = np.zeros((TOKENS, COLS), dtype=np.float32)
    for t in range(TOKENS):
        sources = [np.float32(rng()) for _ in range(SOURCES)]
        for c in range(COLS):
            value = np.float32(0)
            for s in range(SOURCES):
                value = np.float32(value + np.float32(mix[c, s] * sources[s]))
            x[t, c] = np.float32(value + np.float32(np.float32(0.25) * np.float32(rng())))
    return w.astype(np.float64), x.astype(np.float64)


def magnitude(w, _, sparsity):
    flat = np.abs(w).ravel()
    out = w.copy().ravel()
    out[np.argsort(flat, kind="stable")[: round(sparsity * flat.size)]] = 0
    return out.reshape(w.shape)


def wanda(w, x, sparsity):
    scores = np.abs(w) * np.linalg.norm(x, axis=0)
    out = w.copy()
    for r, row in enumerate(scores):
        out[r, np.argsort(row, kind="stable")[: round(sparsity * row.size)]] = 0
    return out


def sparsegpt(w, x, sparsity, scales=None):
    """Algorithm 1 of the paper with weights compared within their row, the number of weights that go in each block found by
    one cut through the row by w^2 / (H^-1)_jj; `scales` [ROWS][COLS / 32] rounds to int4 as GPTQ does."""
    h = x.T @ x
    h += np.eye(len(h)) * (OWN * np.diag(h) + ALL * np.mean(np.diag(h)))
    order = np.argsort(-np.diag(x.T @ x), kind="stable")
    w, h = w[:, order].copy(), h[order][:, order]
    inverse = np.linalg.inv(h)
    u = np.linalg.cholesky(inverse).T
    cut = np.zeros(w.shape, dtype=bool)
    for r, costs in enumerate(w**2 / np.diag(inverse)):
        cut[r, np.argsort(costs, kind="stable")[: round(sparsity * w.shape[1])]] = True
    out = np.zeros_like(w)
    for i1 in range(0, w.shape[1], BLOCK):
        i2 = min(i1 + BLOCK, w.shape[1])
        diag = np.diag(u)[i1:i2]
        scores = (w[:, i1:i2] / diag) ** 2
        mask = np.zeros(scores.shape, dtype=bool)
        for r, row in enumerate(scores):
            mask[r, np.argsort(row, kind="stable")[: cut[r, i1:i2].sum()]] = True
        errors = np.zeros_like(scores)
        for j in range(i1, i2):
            q = w[:, j].copy()
            if scales is not None:
                s = scales[:, order[j] // 32]
                q = np.clip(np.round(q / s), -8, 7) * s
            q[mask[:, j - i1]] = 0
            out[:, j] = q
            e = (w[:, j] - q) / u[j, j]
            w[:, j:i2] -= np.outer(e, u[j, j:i2])
            errors[:, j - i1] = e
        w[:, i2:] -= errors @ u[i1:i2, i2:]
    result = np.zeros_like(out)
    result[:, order] = out
    return result


RATIOS = [1.0, 0.9, 0.95, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4]


def bf16(x):
    """Rounded to nearest even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


def int4_scales(w, x):
    """Of the scales that map the weight of largest magnitude of each 32 to 8 times a ratio, with both signs, the bf16 with the
    least squared error, each weight times the norm of its input."""
    groups = w.reshape(ROWS, -1, 32)
    importance = (x ** 2).sum(0).reshape(-1, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    scales = np.stack([bf16(largest / (sign * ratio)) for ratio in RATIOS for sign in (-8, 8)])
    rounded = np.clip(np.round(groups / scales[..., None]), -8, 7) * scales[..., None]
    errors = (importance * (groups - rounded) ** 2).sum(-1)
    return np.take_along_axis(scales, errors.argmin(0)[None], 0)[0]


def main():
    w, x = data()
    scales = int4_scales(w, x)
    rounded = sparsegpt(w, x, 0.5, scales)
    quants = np.round(rounded / np.repeat(scales, 32, 1)).astype(int)
    cases = {
        "magnitude": {s: magnitude(w, x, float(s)) for s in ["0.3", "0.7"]},
        "wanda": {s: wanda(w, x, float(s)) for s in ["0.3", "0.7"]},
        "sparsegpt": {s: sparsegpt(w, x, float(s)) for s in ["0", "0.5", "0.7"]},
    }
    def numbers(m):
        return [float(f"{v:.6g}") for v in m.ravel()]
    golden = {
        "kept": {m: {s: "".join("01"[int(v != 0)] for v in out.ravel()) for s, out in by.items()}
                 for m, by in cases.items()},
        "sparsegpt_first_row": {s: numbers(out[0]) for s, out in cases["sparsegpt"].items()},
        "error": {m: {s: float(np.sum((x @ (out - w).T) ** 2)) for s, out in by.items()} for m, by in cases.items()},
        "sparsegpt_int4_quants": "".join("0123456789abcdef"[q + 8] for q in quants.ravel()),
    }
    path = pathlib.Path(__file__).resolve().parent / "small.json"
    path.write_text(json.dumps(golden, indent=1) + "\n")
    print(path, path.stat().st_size, "bytes", golden["error"])


if __name__ == "__main__":
    main()
