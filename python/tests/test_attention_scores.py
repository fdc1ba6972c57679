"""Accumulated attention scores: by a plain softmax, in chunks, and by the GPU kernels (which an interpreter runs on CPUs)."""

import math
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from scrimp.kv._attention_scores import accumulated_scores, mean_scores


def plain(q, k, positions, scaling):
    """``[batch, kv_heads, queries, keys]``, the mean over the query heads of a KV head."""
    group = q.shape[1] // k.shape[1]
    scores = q.float() @ k.float().repeat_interleave(group, 1).transpose(2, 3) * scaling
    scores.masked_fill_(torch.arange(k.shape[2], device=k.device) > positions[:, None], -math.inf)
    return scores.softmax(-1).unflatten(1, (k.shape[1], group)).mean(2)


#: batch, query heads, KV heads, queries, keys, dim, whether queries are spaced over all keys
SHAPES = [(2, 4, 2, 100, 300, 16, False), (1, 6, 2, 70, 200, 24, True), (1, 4, 4, 33, 33, 64, False), (1, 2, 1, 1, 77, 80, False), (1, 2, 1, 6, 5000, 16, True)]


def case(shape, dtype, device="cpu"):
    batch, heads, kv_heads, queries, n, dim, spaced = shape
    torch.manual_seed(0)
    q, k = torch.randn(batch, heads, queries, dim), torch.randn(batch, kv_heads, n, dim)
    positions = torch.arange(1, queries + 1) * n // queries - 1 if spaced else torch.arange(n - queries, n)
    return q.to(device, dtype), k.to(device, dtype), positions.to(device)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype,close", [(torch.float64, 1e-5), (torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_it_is_that_of_a_plain_softmax(shape, dtype, close, device):
    q, k, positions = case(shape, dtype, device)
    got = accumulated_scores(q, k, 0.25, positions)
    assert got.dtype == torch.float32
    assert torch.allclose(got, plain(q, k, positions, 0.25).sum(2), rtol=close, atol=close)


def test_the_mean_is_over_the_queries_that_see_a_token(device):
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 300, 16, device=device), torch.randn(2, 2, 300, 16, device=device)
    at = torch.arange(300, device=device)
    mean = plain(q, k, at, 0.25).sum(2) / (300 - at)
    assert torch.allclose(mean_scores(q, k, 0.25, None), mean, atol=1e-5)
    assert torch.allclose(mean_scores(q, k, 0.25, 300), mean, atol=1e-5)
    some = mean_scores(q, k, 0.25, 100)
    assert ((some - mean).abs().mean() / mean.mean()).item() < 0.3


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on the GPU here")
def test_the_kernels_for_gpus_interpreted():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, __file__], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    from scrimp.kv import _attention_scores_cuda

    # The interpreter has no products in bf16.
    for dtype, close in ((torch.float32, 1e-5), (torch.float16, 1e-2)):
        for shape in SHAPES:
            q, k, positions = case(shape, dtype)
            got = _attention_scores_cuda.accumulated_scores(q, k, 0.25, positions)
            assert torch.allclose(got, plain(q, k, positions, 0.25).sum(2), rtol=close, atol=close), (dtype, shape)
