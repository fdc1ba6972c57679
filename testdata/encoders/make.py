#!/usr/bin/env python3
"""Forward passes of all encoders in NumPy, from the definitions alone: testdata/encoders/golden.json.

usage: testdata/encoders/make.py
"""

import json
import pathlib

import numpy as np

P = [0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3]
MASK = (1 << 64) - 1
TABLE, WEIGHTS = 0x7461626C, 0x77656967


def mum(a, b):
    return (a * b & MASK) ^ (a * b >> 64)


class Hash:
    def __init__(self, seed, feature):
        self.key = mum(seed ^ P[0], (feature + 1) * P[1] & MASK)

    def __call__(self, x):
        product = (x ^ P[2]) * (self.key ^ P[3])
        return mum((product & MASK) ^ P[2], (product >> 64) ^ P[3])


def initial(n, seed, middle, spread):
    hash = Hash(seed, 0x696E6974)
    unit = np.array([(hash(i) >> 40) / (1 << 23) - 1 for i in range(n)], np.float32)
    return (np.float32(middle) + np.float32(spread) * unit).astype(np.float64)


def probe(seed, feature, x, j, base, rows):
    """Row of probe j."""
    h = Hash(seed, feature)(x)
    at = ((h & 0xFFFFFFFF) + j * (h >> 32 | 1)) & 0xFFFFFFFF
    return base + (at * rows >> 32)


def signs(seed, feature, x, dim):
    """A sign for each eight values of a vector."""
    bits = mum(Hash(seed, feature)(x), P[1])
    return np.array([-1 if bits >> (i // 8 % 64) & 1 else 1 for i in range(dim)])


def ranges(rows, features):
    return [(0, rows[0])] * features if len(rows) == 1 else list(zip(np.cumsum([0, *rows[:-1]]).tolist(), rows))


def bloom(c, ids, stride):
    blocks, k, width = c["dim"] // c["width"], c["k"], c["width"]
    spread = 0.5 / np.sqrt(c["dim"])
    table = initial((sum(c["rows"]) - 1) * stride + width, c["seed"] ^ TABLE, 0, spread)
    weight_seed, wk, groups = c["seed"] ^ WEIGHTS, c["weight_k"], c["groups"]
    alphas = initial(sum(c["weight_rows"]) * groups, weight_seed, 1 / wk, 0.05 / wk)
    out = np.zeros((len(ids), c["features"], c["dim"]))
    for n, sample in enumerate(ids):
        for f, x in enumerate(sample):
            for b in range(blocks):
                z = np.zeros(width)
                for j in range(b * k, (b + 1) * k):
                    row = probe(c["seed"] ^ TABLE, f, x, j, *ranges(c["rows"], c["features"])[f])
                    z += table[row * stride :][:width]
                alpha = 1
                if c["weight_rows"]:
                    rows = [probe(weight_seed, f, x, j, *ranges(c["weight_rows"], c["features"])[f]) for j in range(wk)]
                    alpha = sum(alphas[row * groups + b * groups // blocks] for row in rows)
                out[n, f, b * width :][:width] = alpha * z / np.sqrt(k)
            if c["signs"]:
                out[n, f] *= signs(c["seed"] ^ TABLE, f, x, c["dim"])
    return out.sum(1, keepdims=True) if c["bagged"] else out


def qr(c, ids):
    spread = 0.5 / np.sqrt(c["dim"])
    remainder = initial(sum(c["rows"]) * c["dim"], c["seed"] ^ 1, 0, spread).reshape(-1, c["dim"])
    quotient = initial(sum(c["weight_rows"]) * c["dim"], c["seed"] ^ 2, 1, 0.5).reshape(-1, c["dim"])
    out = np.zeros((len(ids), c["features"], c["dim"]))
    for n, sample in enumerate(ids):
        for f, x in enumerate(sample):
            (rb, m), (qb, q) = ranges(c["rows"], c["features"])[f], ranges(c["weight_rows"], c["features"])[f]
            value = Hash(c["seed"], f)(x) * m * q >> 64
            out[n, f] = remainder[rb + value % m] * quotient[qb + value // m]
    return out


def hash_embeddings(c, ids):
    k, dim = c["k"], c["dim"]
    table = initial(c["rows"][0] * dim, c["seed"] ^ 3, 0, 0.5 / np.sqrt(dim)).reshape(-1, dim)
    weights = initial(c["weight_rows"][0] * k, c["seed"] ^ 4, 1 / np.sqrt(k), 0.3).reshape(-1, k)
    out = np.zeros((len(ids), c["features"], dim))
    for n, sample in enumerate(ids):
        for f, x in enumerate(sample):
            w = weights[probe(c["seed"] ^ 2, f, x, 0, 0, c["weight_rows"][0])]
            for j in range(k):
                out[n, f] += w[j] * table[probe(c["seed"] ^ 1, f, x, j, 0, c["rows"][0])]
    return out


def main():
    rng = np.random.default_rng(1)
    features, dim = 3, 16
    base = dict(features=features, dim=dim, seed=9, hash="mum64-2", rows=[50], weight_rows=[], width=dim, k=1)
    base |= dict(weight_k=1, groups=1, signs=False, bagged=False, precision="f32")
    configs = [
        dict(encoder="hashing"),
        dict(encoder="robe", rows=[300], width=8, signs=True),
        dict(encoder="memrec", width=4, weight_rows=[20], signs=True),
        dict(encoder="memrec", k=4, weight_rows=[20], weight_k=2),
        dict(encoder="memrec", rows=[300], overlap=True, weight_rows=[20], signs=True),
        dict(encoder="memrec", width=8, k=2, weight_rows=[10], groups=2, rows=[7, 9, 30]),
        dict(encoder="memrec-bagged", k=4, weight_rows=[20], bagged=True),
        dict(encoder="qr", rows=[3, 10, 12], weight_rows=[2, 5, 9]),
        dict(encoder="hash-embeddings", k=2, weight_rows=[40]),
    ]
    cases = []
    for config in configs:
        c = base | config
        ids = [[int(x) for x in row] for row in rng.integers(0, 2**63, (4, features), dtype=np.uint64)]
        stride = 1 if c["encoder"] == "robe" or c.get("overlap") else c["width"]
        encode = {"qr": qr, "hash-embeddings": hash_embeddings}.get(c["encoder"], lambda c, ids: bloom(c, ids, stride))
        cases.append({"config": c, "ids": ids, "out": [float(f"{x:.7g}") for x in encode(c, ids).reshape(-1)]})
    path = pathlib.Path(__file__).resolve().parent / "golden.json"
    path.write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
