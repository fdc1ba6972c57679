"""MemRecEmbedding against nn.EmbeddingBag on a table of 10 GB: forward, and forward + backward + optimizer step.

usage: embedding.py [--table-gb 10] [--batch 2048] [--features 26] [--dim 128] [--budget 16MB]

The full table is one nn.EmbeddingBag over all features' rows, a bag for each look-up, as torch's fastest way to look rows up.
"""

import argparse

import torch
from torch import nn

from common import interleaved, machine
from scrimp.rec import Adagrad, MemRecEmbedding, RowWiseAdagrad


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--table-gb", type=float, default=10)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--features", type=int, default=26)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--budget", default="16MB")
    parser.add_argument("--block", type=int, default=4, help="values of a row; a vector is dim / block rows")
    parser.add_argument("--weight-share", type=float, default=0.05, help="part of the budget for scales of vectors")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--optimizers", action="store_true", help="training as well; needs as much memory again for each state")
    args = parser.parse_args()
    torch.set_num_threads(2)
    print(machine())
    n, dim = int(args.table_gb * 1e9 / 4 / args.dim), args.dim
    table = torch.empty(n, dim)
    block = torch.randn(4096, dim) * 0.01
    for first in range(0, n, 4096):
        table[first : first + 4096] = block[: min(4096, n - first)]
    full = nn.EmbeddingBag(n, dim, mode="sum", sparse=True, _weight=table)
    batches = [torch.randint(0, n, (args.batch, args.features)) for _ in range(8)]
    offsets = torch.arange(args.batch * args.features)
    more = dict(block_dim=args.block, weight_share=args.weight_share)
    memrec = MemRecEmbedding(args.features, dim, args.budget, **more)
    turn = iter(range(1 << 60))

    def ids():
        return batches[next(turn) % len(batches)]

    with torch.no_grad():
        best = interleaved(
            {
                "nn.EmbeddingBag": lambda: full(ids().view(-1), offsets),
                "MemRecEmbedding": lambda: memrec(ids()),
            },
            args.rounds, 4,
        )
    print(f"forward, {args.batch} x {args.features} x {dim}, table {4e-9 * n * dim:.1f} GB, MemRec {memrec.nbytes / 1e6:.1f} MB:")
    report(best, "nn.EmbeddingBag")
    if not args.optimizers:
        return
    grad = torch.randn(args.batch * args.features, dim)
    calls = {}
    for name, optimizer in (("SGD", torch.optim.SGD), ("Adagrad", torch.optim.Adagrad), ("SparseAdam", torch.optim.SparseAdam)):
        calls[f"nn.EmbeddingBag + {name}"] = training(lambda: full(ids().view(-1), offsets), optimizer(full.parameters(), lr=0.01), grad)
        sparse = MemRecEmbedding(args.features, dim, args.budget, **more, sparse=True)
        calls[f"MemRecEmbedding, sparse + {name}"] = training(lambda e=sparse: e(ids()), optimizer(sparse.parameters(), lr=0.01), grad)
    for fused in (Adagrad(0.01), RowWiseAdagrad(0.01)):
        e = MemRecEmbedding(args.features, dim, args.budget, **more, fused=fused)
        calls[f"MemRecEmbedding, fused {type(fused).__name__}"] = training(lambda e=e: e(ids()), None, grad)
    print("forward + backward + step:")
    report(interleaved(calls, args.rounds), "nn.EmbeddingBag + Adagrad")


def training(forward, optimizer, grad):
    def step():
        out = forward()
        out.view(-1, out.shape[-1]).backward(grad)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def report(best, against):
    for name, t in best.items():
        print(f"  {name:40} {1e3 * t:8.2f} ms   {best[against] / t:.2f}x")


if __name__ == "__main__":
    main()
