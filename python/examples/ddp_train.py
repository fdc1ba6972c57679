"""A DLRM whose tables are small enough to replicate, trained by several processes with DistributedDataParallel.

usage: torchrun --nproc-per-node 2 ddp_train.py [--data clicks.csv --label clicked --numeric price --categorical user,site] [--budget 64kB] [--epochs 1]

Without data, clicks are made up. Every process reads its share of the rows; gradients are averaged (gloo), so all processes keep the same
tables. There is no parameter server and no sharding: that is what compressed tables are for.
"""

import argparse
import csv
import os
import zlib

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scrimp.rec import MemRecEmbedding


class Dlrm(nn.Module):
    """Numbers and vectors of ids, their dot products, and layers on top."""

    def __init__(self, numeric, categorical, dim, budget):
        super().__init__()
        self.embedding = MemRecEmbedding(categorical, dim, budget)
        self.bottom = nn.Sequential(nn.Linear(numeric, 32), nn.ReLU(), nn.Linear(32, dim))
        vectors = categorical + 1
        self.register_buffer("pairs", torch.tril_indices(vectors, vectors, -1), persistent=False)
        self.top = nn.Sequential(nn.Linear(dim + vectors * (vectors - 1) // 2, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, numbers, ids):
        x = self.bottom(numbers)
        vectors = torch.cat([x.unsqueeze(1), self.embedding(ids)], 1)
        products = vectors @ vectors.transpose(1, 2)
        return self.top(torch.cat([x, products[:, self.pairs[0], self.pairs[1]]], 1)).squeeze(1)


def read(path, label, numeric, categorical):
    """Rows of a CSV file as tensors; ids are hashes of the text."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    number = lambda text: float(text) if text else 0.0
    y = torch.tensor([number(row[label]) for row in rows])
    numbers = torch.tensor([[number(row[name]) for name in numeric] for row in rows]).view(len(rows), -1)
    ids = torch.tensor([[zlib.crc32(row[name].encode()) for name in categorical] for row in rows])
    return numbers, ids, y


def made_up(rows=20_000):
    """Clicks of 2000 users on 50 sites."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randint(0, n, (rows,), generator=generator) for n in (2000, 50)], 1)
    likes = [torch.randn(n, generator=generator) for n in (2000, 50)]
    numbers = torch.randn(rows, 1, generator=generator)
    p = (1.5 * likes[0][ids[:, 0]] + likes[1][ids[:, 1]] + 0.5 * numbers[:, 0]).sigmoid()
    return numbers, ids, (torch.rand(rows, generator=generator) < p).float()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--label", default="clicked")
    parser.add_argument("--numeric", default="price")
    parser.add_argument("--categorical", default="user,site")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--budget", default="64kB")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=512)
    args = parser.parse_args()
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    if args.data:
        numbers, ids, y = read(args.data, args.label, args.numeric.split(","), args.categorical.split(","))
    else:
        numbers, ids, y = made_up()
    test = len(y) * 9 // 10
    torch.manual_seed(0)
    model = Dlrm(numbers.shape[1], ids.shape[1], args.dim, args.budget)
    if rank == 0:
        print(model.embedding, flush=True)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.Adagrad(ddp.parameters(), lr=0.05)
    loss_of = nn.BCEWithLogitsLoss()
    for epoch in range(args.epochs):
        order = torch.randperm(test, generator=torch.Generator().manual_seed(epoch))
        order = order[: len(order) // world * world][rank::world]
        for batch in order.split(args.batch // world):
            optimizer.zero_grad()
            loss_of(ddp(numbers[batch], ids[batch]), y[batch]).backward()
            optimizer.step()
        if rank == 0:
            with torch.no_grad():
                print(f"epoch {epoch + 1}: log loss {loss_of(model(numbers[test:], ids[test:]), y[test:]):.4f}", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
