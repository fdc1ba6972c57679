"""The best of all rounds as a table. usage: report.py FILE.jsonl"""
import json
import sys

best = {}
for line in open(sys.argv[1]):
    row = json.loads(line)
    key = (row["batch"], row["engine"], row["format"], row["sparsity"])
    if key not in best or row["us"] < best[key]["us"]:
        best[key] = row
torch = {key[0]: row["us"] for key, row in best.items() if key[1].startswith("torch")}
dense = {(key[0], key[2]): row["us"] for key, row in best.items() if key[1] == "scrimp" and not key[2].startswith("sparse")}
print("| batch | engine | format | zeros | us | GB/s | against torch bf16 | against our dense |")
print("|---|---|---|---|---|---|---|---|")
for (batch, engine, fmt, sparsity), row in sorted(best.items()):
    ratio = lambda us: f"{us / row['us']:.2f}x" if us else ""
    own = dense.get((batch, fmt.removeprefix("sparse-"))) if fmt.startswith("sparse-") else None
    speed = f"{row['gb_per_s']:.1f}" if "gb_per_s" in row else ""
    name = f"{engine} {row['tier']}" if "tier" in row else engine
    print(f"| {batch} | {name} | {fmt} | {sparsity:.0%} | {row['us']:.0f} | {speed} | {ratio(torch.get(batch))} | {ratio(own)} |")
