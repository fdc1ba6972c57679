#!/usr/bin/env python3
"""How a linear layer's speed grows with sparsity and threads, and from which sparsity on zeros are worth leaving out.

usage: benches/linear/sweep.py [--scrimp FILE] [--rows R] [--cols C] [--batch B] [--tiers avx512,avx2] [--out DIR]

`scrimp bench linear` times dense and sparse formats in turn, so a point compares figures of the same seconds. Writes
DIR/sweep.jsonl, prints tables, and draws DIR/sweep.svg (default: target/bench). Resumable: points that are there are kept.
"""

import argparse
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPARSITIES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
VALUES = ["bf16", "int8", "int4"]
COLOURS = {"bf16": "#4e79a7", "int8": "#f28e2b", "int4": "#59a14f"}


def measure(args, tier, threads, sparsity):
    command = [args.scrimp, "bench", "linear", "--rows", args.rows, "--cols", args.cols, "--batch", args.batch, "--sparsity",
               sparsity, "--threads", threads, "--formats", ",".join(f"{v},sparse-{v}" for v in VALUES), "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False,
                          env=os.environ | {"SCRIMP_TIER": tier})
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip())
    us = {row["format"]: row["us"] for row in map(json.loads, done.stdout.splitlines())}
    return {"tier": tier, "threads": threads, "batch": args.batch, "sparsity": sparsity, "us": us}


def ratio(row, value):
    """Dense time over sparse time."""
    return row["us"][value] / row["us"][f"sparse-{value}"]


def break_even(rows, value):
    """The sparsity at which both take the same time, between two measured ones; None if there is none."""
    rows = sorted(rows, key=lambda row: row["sparsity"])
    for low, high in zip(rows, rows[1:]):
        a, b = ratio(low, value), ratio(high, value)
        if a < 1 <= b:
            return low["sparsity"] + (1 - a) / (b - a) * (high["sparsity"] - low["sparsity"])
    return rows[0]["sparsity"] if ratio(rows[0], value) >= 1 else None


def tables(rows):
    groups = sorted({(row["tier"], row["threads"]) for row in rows}, key=lambda g: (-len(g[0]), g))
    sparsities = sorted({row["sparsity"] for row in rows})
    lines = ["Dense time over sparse time:", "",
             "| tier | threads | values | " + " | ".join(f"{s:.0%}" for s in sparsities) + " | break-even |",
             "|---|---|---|" + "---|" * (len(sparsities) + 1)]
    for tier, threads in groups:
        mine = {row["sparsity"]: row for row in rows if (row["tier"], row["threads"]) == (tier, threads)}
        for value in VALUES:
            cells = [f"{ratio(mine[s], value):.2f}" if s in mine else "" for s in sparsities]
            even = break_even(mine.values(), value)
            lines.append(f"| {tier} | {threads} | {value} | " + " | ".join(cells) +
                         f" | {'none' if even is None else f'{even:.0%}'} |")
    return "\n".join(lines)


def drawing(rows):
    groups = sorted({(row["tier"], row["threads"]) for row in rows}, key=lambda g: (-len(g[0]), g))
    width, height, pad = 300, 240, 42
    top = max(ratio(row, value) for row in rows for value in VALUES) * 1.05
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * len(groups)} {height + 24}" font-family="sans-serif" '
           f'font-size="11"><rect width="100%" height="100%" fill="white"/>']
    for i, (tier, threads) in enumerate(groups):
        at = lambda x, y: (i * width + pad + x / 0.9 * (width - pad - 14), height - pad - y / top * (height - pad - 30))
        out.append(f'<text x="{i * width + pad}" y="18">{tier}, {threads} thread{"s" if threads > 1 else ""}</text>')
        for y in range(int(top) + 1):
            (x0, py), (x1, _) = at(0, y), at(0.9, y)
            stroke = "#888" if y == 1 else "#eee"
            out.append(f'<line x1="{x0:.1f}" y1="{py:.1f}" x2="{x1:.1f}" y2="{py:.1f}" stroke="{stroke}"/>'
                       f'<text x="{x0 - 6:.1f}" y="{py + 4:.1f}" text-anchor="end">{y}x</text>')
        for x in (0, 0.3, 0.6, 0.9):
            px, py = at(x, 0)
            out.append(f'<text x="{px:.1f}" y="{py + 16:.1f}" text-anchor="middle">{x:.0%}</text>')
        for value in VALUES:
            mine = sorted((row["sparsity"], ratio(row, value)) for row in rows
                          if (row["tier"], row["threads"]) == (tier, threads))
            path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in mine)
            out.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[value]}" stroke-width="2"/>')
    for i, value in enumerate(VALUES):
        out.append(f'<text x="{pad + 70 * i}" y="{height + 14}" fill="{COLOURS[value]}">{value}</text>')
    out.append(f'<text x="{pad + 70 * len(VALUES)}" y="{height + 14}">dense time over sparse time, by share of zeros</text></svg>')
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scrimp", default=str(ROOT / "target/release/scrimp"))
    parser.add_argument("--rows", type=int, default=14336)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tiers", default="avx512,avx2")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/bench")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "sweep.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    key = lambda row: (row["tier"], row["threads"], row["batch"], row["sparsity"])
    done = set(map(key, rows))
    cores = len(os.sched_getaffinity(0))
    threads = sorted({1, *(n for n in (2, 4, 8, 16, 32) if n <= cores), cores})
    for tier in args.tiers.split(","):
        for n in threads:
            for sparsity in SPARSITIES:
                if (tier, n, args.batch, sparsity) not in done:
                    rows.append(measure(args, tier, n, sparsity))
                    with open(path, "a", encoding="utf-8") as out:
                        out.write(json.dumps(rows[-1]) + "\n")
    rows = [row for row in rows if row["batch"] == args.batch]
    print(tables(rows))
    (args.out / "sweep.svg").write_text(drawing(rows))
    print(f"\ndrawn: {args.out / 'sweep.svg'}")


if __name__ == "__main__":
    main()
