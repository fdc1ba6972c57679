"""torch.nn.functional.linear in bf16, 14336 x 4096. usage: torch_linear.py THREADS BATCH; prints a JSON line.

Walks through five matrices, 587 MB, so that nothing is timed in cache; the best of 20 calls.
"""
import json
import sys
import time

import torch

threads, batch = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
rows, cols = 14336, 4096
weights = [torch.randn(rows, cols, dtype=torch.float32).to(torch.bfloat16) for _ in range(5)]
x = torch.randn(batch, cols).to(torch.bfloat16)
best = float("inf")
with torch.no_grad():
    for i in range(20):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weights[i % len(weights)])
        best = min(best, time.perf_counter() - start)
print(json.dumps({"engine": f"torch {torch.__version__}", "format": "bf16", "batch": batch, "sparsity": 0.0,
                  "threads": threads, "us": best * 1e6, "gb_per_s": rows * cols * 2 / best / 1e9}))
