"""A DLRM on click logs, its tables full or in a budget: flights or Criteo.

usage: dlrm_train.py --criteo train.txt [--budget 1MB | --full] [--rows 500000] [--epochs 1]
       dlrm_train.py --flights FOLDER     (made by `scrimp rec prepare flights -o FOLDER`)

Prints log loss and AUC of the last tenth of the rows (of flights: of test.csv) after each epoch, and what the tables take. Criteo's format is a label, 13
integers and 26 hexadecimal ids, separated by tabs; `scrimp rec generate --preset small -o train.txt` makes such rows.
"""

import argparse
import csv
import gzip
import itertools
import pathlib
import time
import zlib

import torch
from torch import nn

from scrimp.rec import Adagrad, MemRecEmbedding


class FullTables(nn.Module):
    """One row for each id of the training rows, and one for all others."""

    def __init__(self, ids, dim):
        super().__init__()
        self.known = [column.unique() for column in ids.T]
        self.tables = nn.ModuleList(nn.Embedding(len(k) + 1, dim, sparse=True) for k in self.known)
        for table in self.tables:
            nn.init.uniform_(table.weight, -0.5 / dim**0.5, 0.5 / dim**0.5)

    @property
    def nbytes(self):
        return sum(table.weight.numel() * 4 for table in self.tables)

    def forward(self, ids):
        vectors = []
        for column, known, table in zip(ids.T, self.known, self.tables):
            at = torch.searchsorted(known, column.contiguous()).clamp_max(len(known) - 1)
            vectors.append(table(torch.where(known[at] == column, at, len(known))))
        return torch.stack(vectors, 1)


class Dlrm(nn.Module):
    """Numbers and vectors of ids, their dot products, and layers on top."""

    def __init__(self, numeric, embedding, n_ids, dim):
        super().__init__()
        self.embedding = embedding
        self.bottom = nn.Sequential(nn.Linear(max(numeric, 1), 64), nn.ReLU(), nn.Linear(64, dim), nn.ReLU())
        vectors = n_ids + 1
        self.register_buffer("pairs", torch.tril_indices(vectors, vectors, -1), persistent=False)
        self.top = nn.Sequential(nn.Linear(dim + vectors * (vectors - 1) // 2, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, numbers, ids):
        x = self.bottom(numbers)
        vectors = torch.cat([x.unsqueeze(1), self.embedding(ids)], 1)
        products = vectors @ vectors.transpose(1, 2)
        return self.top(torch.cat([x, products[:, self.pairs[0], self.pairs[1]]], 1)).squeeze(1)


def criteo(path, rows):
    """Labels, log(1 + numbers) and ids."""
    opened = gzip.open(path, "rt") if str(path).endswith(".gz") else open(path, encoding="ascii")
    y, numbers, ids = [], [], []
    with opened as file:
        for line in itertools.islice(file, rows):
            fields = line.rstrip("\n").split("\t")
            if len(fields) != 40:
                raise SystemExit(f"{path}: a line has {len(fields)} fields, not 40")
            y.append(float(fields[0]))
            numbers.append([max(float(f or 0), 0.0) for f in fields[1:14]])
            ids.append([int(f, 16) if f else -1 for f in fields[14:]])
    y, numbers, ids = torch.tensor(y), torch.tensor(numbers).log1p(), torch.tensor(ids)
    cut = len(y) * 9 // 10
    return tuple((numbers[part], ids[part], y[part]) for part in (slice(None, cut), slice(cut, None)))


def flights(folder):
    """train.csv and test.csv of `scrimp rec prepare flights`, as schema.toml describes them."""
    import tomllib  # Python 3.11

    schema = tomllib.loads((folder / "schema.toml").read_text())
    numeric, categorical = ([c["name"] for c in schema.get(kind, [])] for kind in ("numeric", "categorical"))

    def read(path):
        y, numbers, ids = [], [], []
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                y.append(float(row[schema["label"]]))
                numbers.append([float(row[n] or 0) for n in numeric])
                ids.append([zlib.crc32(row[c].encode()) for c in categorical])
        return torch.tensor(numbers).view(len(y), -1), torch.tensor(ids), torch.tensor(y)

    (numbers, ids, y), (test_numbers, *test) = read(folder / "train.csv"), read(folder / "test.csv")
    if numeric:
        mean, std = numbers.mean(0), numbers.std(0).clamp_min(1e-6)
        numbers, test_numbers = (numbers - mean) / std, (test_numbers - mean) / std
    else:
        numbers, test_numbers = numbers.new_ones(len(y), 1), numbers.new_ones(len(test[1]), 1)
    return (numbers, ids, y), (test_numbers, *test)


def auc(scores, y):
    """The chance that a row with label 1 has a higher score than one with label 0; ties count half."""
    _, place, counts = scores.double().unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[place]
    positive = y > 0
    n, m = positive.sum().item(), (~positive).sum().item()
    return ((ranks[positive].sum() - n * (n + 1) / 2) / max(n * m, 1)).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--criteo", type=pathlib.Path)
    data.add_argument("--flights", type=pathlib.Path)
    parser.add_argument("--budget", default="1MB", help="bytes of the tables")
    parser.add_argument("--full", action="store_true", help="a row for each id instead")
    parser.add_argument("--rows", type=int, help="most rows of Criteo's")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=0.02)
    args = parser.parse_args()
    (numbers, ids, y), test = criteo(args.criteo, args.rows) if args.criteo else flights(args.flights)
    torch.manual_seed(0)
    # The tables learn in the backward pass, as sparse as the batch; the other layers by a plain optimizer.
    embedding = FullTables(ids, args.dim) if args.full else MemRecEmbedding(ids.shape[1], args.dim, args.budget, fused=Adagrad(args.lr))
    model = Dlrm(numbers.shape[1], embedding, ids.shape[1], args.dim)
    distinct = sum(column.unique().numel() for column in ids.T)
    print(f"{len(y)} rows, {distinct} ids, tables {embedding.nbytes / 1e6:.2f} MB (full: {distinct * args.dim * 4 / 1e6:.2f} MB)", flush=True)
    optimizers = [torch.optim.Adam([p for n, p in model.named_parameters() if not n.startswith("embedding.")], lr=1e-3)]
    if args.full:
        optimizers.append(torch.optim.Adagrad(embedding.parameters(), lr=args.lr))
    loss_of = nn.BCEWithLogitsLoss()
    for epoch in range(args.epochs):
        start = time.perf_counter()
        for batch in torch.randperm(len(y)).split(args.batch):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(model(numbers[batch], ids[batch]), y[batch]).backward()
            for optimizer in optimizers:
                optimizer.step()
        seconds = time.perf_counter() - start
        with torch.no_grad():
            scores = torch.cat([model(a, b) for a, b in zip(test[0].split(8192), test[1].split(8192))])
        print(f"epoch {epoch + 1}: log loss {loss_of(scores, test[2]):.4f}, AUC {auc(scores, test[2]):.4f}, {len(y) / seconds:.0f} rows/s", flush=True)


if __name__ == "__main__":
    main()
