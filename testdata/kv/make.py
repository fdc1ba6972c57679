"""Scores of eviction policies in NumPy: scores.json.

usage: python3 testdata/kv/make.py      (needs numpy)

Queries and keys are written out as f32; attention is causal softmax in f64.
"""

import json
import pathlib

import numpy as np

TOKENS, HEADS, KV_HEADS, DIM = 48, 4, 2, 8
WINDOW, KERNEL = 32, 7

rng = np.random.default_rng(13)
q = np.round(rng.normal(size=(TOKENS, HEADS, DIM)), 3)
k = np.round(rng.normal(size=(TOKENS, KV_HEADS, DIM)), 3)
group = HEADS // KV_HEADS
scale = DIM**-0.5

# attention[h][i][t]: what query i of head h gives to token t
scores = np.einsum("ihd,thd->hit", q, np.repeat(k, group, axis=1)) * scale
scores = np.where(np.tril(np.ones((TOKENS, TOKENS), bool)), scores, -np.inf)
attention = np.exp(scores - scores.max(-1, keepdims=True))
attention /= attention.sum(-1, keepdims=True)


def per_kv_head(x):
    """Mean over the query heads of a group."""
    return x.reshape(KV_HEADS, group, TOKENS).mean(1)


h2o = per_kv_head(attention.sum(1) / np.arange(TOKENS, 0, -1))
recent = per_kv_head(attention[:, -WINDOW:].sum(1))
padded = np.pad(recent, ((0, 0), (KERNEL // 2, KERNEL // 2)))
snapkv = np.lib.stride_tricks.sliding_window_view(padded, KERNEL, axis=1).mean(-1)
tova = per_kv_head(attention[:, -1])
knorm = -np.linalg.norm(k, axis=-1).T
# The most attention while the context is repeated: any numbers, of a generator of their own.
repeated = np.round(np.random.default_rng(14).uniform(0, 1, size=(KV_HEADS, TOKENS)) ** 3, 3)
near = attention[:, -WINDOW:].sum(1).mean(0)
near[:4] = 0
place = np.array([near[max(p - 32, 0) : p + 5].mean() for p in range(TOKENS)])
kvzip_query = repeated * (place / place.mean()) ** 2

out = pathlib.Path(__file__).resolve().parent / "scores.json"
scores = {"h2o": h2o, "snapkv": snapkv, "tova": tova, "knorm": knorm, "repeated": repeated, "kvzip-query": kvzip_query}
rounded = {name: np.round(x, 9).tolist() for name, x in scores.items()}
out.write_text(json.dumps(dict(q=q.ravel().tolist(), k=k.ravel().tolist(), **rounded)) + "\n")
