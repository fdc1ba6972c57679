#!/usr/bin/env python3
"""torch EmbeddingBag against `scrimp bench embedding`, interleaved in one run.

usage: benches/embedding/torch_bag.py [--rows N] [--rounds N] [--scrimp target/release/scrimp] [--threads 2]

The workload is that of `scrimp bench embedding`: an f32 table of dim 128 and batches of 2048 x 26 lookups of one id each, drawn
uniformly. The allocator is tuned to keep its pages; otherwise page faults of fresh outputs take most of torch's time. The two
processes alternate, and the best round of each counts. Prints one JSON object per line.
"""

import argparse
import json
import os
import subprocess
import sys
import time

TUNED = {"MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_MMAP_THRESHOLD_": "100000000000"}


def torch_round(rows, threads):
    import torch

    torch.set_num_threads(threads)
    dim, lookups = 128, 2048 * 26
    table = torch.nn.EmbeddingBag(1, dim, mode="sum")
    # Filled page by page: random initial values would take longer than the measurement.
    table.weight = torch.nn.Parameter(torch.full((rows, dim), 0.01), requires_grad=False)
    offsets = torch.arange(lookups)
    best = 1e9
    with torch.no_grad():
        batches = [torch.randint(0, rows, (lookups,)) for _ in range(16)]
        for ids in batches + batches:
            start = time.perf_counter()
            table(ids, offsets)
            best = min(best, time.perf_counter() - start)
    print(best / lookups * 1e9)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=19_531_250)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scrimp", default="target/release/scrimp")
    parser.add_argument("--prefix", default="", help="put before each command, such as 'chrt -f 10'")
    parser.add_argument("--worker", action="store_true")
    args = parser.parse_args()
    if args.worker:
        return torch_round(args.rows, args.threads)
    prefix = args.prefix.split()
    torch_best, scrimp = float("inf"), {}
    for _ in range(args.rounds):
        worker = [*prefix, sys.executable, __file__, "--worker", "--rows", str(args.rows), "--threads", str(args.threads)]
        out = subprocess.run(worker, env=os.environ | TUNED, check=True, capture_output=True, text=True).stdout
        torch_best = min(torch_best, float(out))
        bench = [*prefix, args.scrimp, "bench", "embedding", "--json", "--rows-full", str(args.rows)]
        bench += ["--threads", str(args.threads)]
        for line in subprocess.run(bench, check=True, capture_output=True, text=True).stdout.splitlines():
            result = json.loads(line)
            key = (result["encoder"], result["dtype"], result["bytes"])
            if key not in scrimp or result["ns_per_lookup"] < scrimp[key]["ns_per_lookup"]:
                scrimp[key] = result
    print(json.dumps({"engine": "torch EmbeddingBag", "dtype": "f32", "bytes": args.rows * 512, "ns_per_lookup": torch_best}))
    for result in scrimp.values():
        print(json.dumps({"engine": "scrimp", **result, "speedup_vs_torch": torch_best / result["ns_per_lookup"]}))


if __name__ == "__main__":
    main()
