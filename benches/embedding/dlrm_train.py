#!/usr/bin/env python3
"""Training throughput of a DLRM in PyTorch: the model of `scrimp rec train --layers dlrm --dim 64` with full tables.

usage: benches/embedding/dlrm_train.py [--rows-per-feature 10000] [--steps 30] [--threads 2]

13 numbers, 26 features, bottom MLP 13-128-64, dot interaction, top MLP 415-256-128-1, batch 2048; sparse gradients and
Adagrad for the tables, Adam for the rest. Prints one JSON object with rows per second (best of three groups of steps).
"""

import argparse
import json
import time

import torch


class Dlrm(torch.nn.Module):
    def __init__(self, rows, dim=64):
        super().__init__()
        # One table for all features, offset by feature: fewer and larger operations than 26 tables.
        self.table = torch.nn.Embedding(rows * 26, dim, sparse=True)
        self.offset = torch.arange(26) * rows
        relu, linear = torch.nn.ReLU, torch.nn.Linear
        self.bottom = torch.nn.Sequential(linear(13, 128), relu(), linear(128, dim), relu())
        self.top = torch.nn.Sequential(linear(dim + 351, 256), relu(), linear(256, 128), relu(), linear(128, 1))
        self.pairs = torch.tril_indices(27, 27, -1)

    def forward(self, numeric, ids):
        b = self.bottom(numeric)
        x = torch.cat([b.unsqueeze(1), self.table(ids + self.offset)], 1)
        dots = torch.bmm(x, x.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([b, dots], 1)).squeeze(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows-per-feature", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Dlrm(args.rows_per_feature)
    tables = torch.optim.Adagrad(model.table.parameters(), lr=0.03)
    dense = torch.optim.Adam([p for n, p in model.named_parameters() if "table" not in n], lr=1e-3)
    loss_of = torch.nn.BCEWithLogitsLoss()
    batch = 2048
    # Ids are skewed like those of click logs.
    data = [
        (
            torch.rand(batch, 13),
            (args.rows_per_feature ** torch.rand(batch, 26)).long() - 1,
            torch.randint(0, 2, (batch,)).float(),
        )
        for _ in range(args.steps)
    ]
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        for numeric, ids, labels in data:
            tables.zero_grad()
            dense.zero_grad()
            loss_of(model(numeric, ids), labels).backward()
            tables.step()
            dense.step()
        best = max(best, batch * args.steps / (time.perf_counter() - start))
    print(json.dumps({"engine": "torch", "rows_per_second": best}))


if __name__ == "__main__":
    main()
