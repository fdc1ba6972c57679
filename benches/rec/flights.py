#!/usr/bin/env python3
"""All encoders on real data: AUC on the flights' test rows, by encoder, compression and seed.

usage: benches/rec/flights.py [--scrimp target/release/scrimp] [--work target/bench-rec] [--seeds 5] [--report-only]

Prepares the data (`scrimp rec prepare flights`), trains every encoder at 10x, 100x and 1000x and the full table, each with
`--seeds` seeds, evaluates on the test rows, and writes flights.md and flights.svg beside this script. WORK/flights.jsonl has a
line per finished training, from which an interrupted run resumes.
"""

import json
import math
import platform
import statistics
import subprocess
import time

import common

ENCODERS = ["memrec", "memrec-bagged", "hashing", "qr", "hash-embeddings", "robe", "cce"]
COMPRESSIONS = [10, 100, 1000]
COLORS = ["#0b6e4f", "#08a045", "#c1121f", "#f77f00", "#7209b7", "#3a86ff", "#6c757d"]


def run(scrimp, *arguments):
    """The command's JSON result, or the reason why there is none."""
    done = subprocess.run([scrimp, *map(str, arguments), "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else str(done.returncode)}
    return json.loads(done.stdout.splitlines()[-1])


def known(results):
    """Finished trainings: (encoder, compression, seed) to result."""
    return {(r["encoder"], r["compression_wanted"], r["seed"]): r for r in common.rows(results)}


def measure(args, results):
    data = args.work / "flights"
    if not (data / "schema.toml").exists():
        print(run(args.scrimp, "rec", "prepare", "flights", "-o", data), flush=True)
    available = subprocess.run([args.scrimp, "rec", "train", "--help"], capture_output=True, text=True).stdout
    plan = [("full", 1)] + [(e, c) for c in COMPRESSIONS for e in ENCODERS if e in available]
    done = known(results)
    # The loop over seeds is outermost, so that an interrupted run covers all encoders.
    for seed in range(1, args.seeds + 1):
        for encoder, compression in plan:
            if (encoder, compression, seed) in done:
                continue
            model = args.work / "model"
            options = [] if encoder == "full" else ["--compression", compression]
            trained = run(args.scrimp, "rec", "train", data, "-o", model, "--encoder", encoder, "--seed", seed, *options,
                          *args.train)
            row = {"encoder": encoder, "compression_wanted": compression, "seed": seed}
            if "error" in trained:
                row["error"] = trained["error"]
            else:
                tested = run(args.scrimp, "rec", "eval", model, data)
                row |= {"auc": tested["auc"], "logloss": tested["logloss"], "bytes": tested["embedding_bytes"],
                        "full_bytes": tested["full_embedding_bytes"], "valid_auc": trained["auc"],
                        "rows_per_second": trained["rows_per_second"], "seconds": trained["seconds"]}
            common.append(results, row)


def summary(results):
    """(encoder, compression) to (mean, spread, seeds, bytes) or a reason."""
    groups = {}
    for (encoder, compression, _), row in known(results).items():
        groups.setdefault((encoder, compression), []).append(row)
    table = {}
    for key, rows in groups.items():
        aucs = [r["auc"] for r in rows if "auc" in r]
        if not aucs:
            table[key] = rows[0]["error"]
            continue
        spread = statistics.stdev(aucs) if len(aucs) > 1 else math.nan
        table[key] = (statistics.mean(aucs), spread, len(aucs), next(r["bytes"] for r in rows if "bytes" in r))
    return table


def size(n):
    for unit in ["B", "kB", "MB", "GB"]:
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000


def markdown(table, args):
    encoders = [e for e in ENCODERS if any((e, c) in table for c in COMPRESSIONS)]
    full = table.get(("full", 1))
    lines = ["# Encoders on flights", "",
             "Test AUC, mean ± standard deviation over seeds (and bytes of all tables). 32,000 test rows:",
             "differences below 0.001 are noise. Made by `benches/rec/flights.py`.", ""]
    if isinstance(full, tuple):
        lines += [f"The full f32 table: **{full[0]:.4f}** ± {full[1]:.4f} ({size(full[3])}, {full[2]} seeds).", ""]
    lines += ["| encoder | " + " | ".join(f"{c}x" for c in COMPRESSIONS) + " |", "|---|" + "---|" * len(COMPRESSIONS)]
    best = {c: max((table[e, c][0] for e in encoders if isinstance(table.get((e, c)), tuple)), default=0)
            for c in COMPRESSIONS}
    for encoder in encoders:
        cells = []
        for c in COMPRESSIONS:
            cell = table.get((encoder, c))
            if cell is None:
                cells.append("")
            elif isinstance(cell, str):
                cells.append("too small a budget" if "small" in cell else "failed")
            else:
                mean = f"{cell[0]:.4f}"
                mean = f"**{mean}**" if cell[0] == best[c] else mean
                cells.append(f"{mean} ± {cell[1]:.4f} ({size(cell[3])})")
        lines.append(f"| {encoder} | " + " | ".join(cells) + " |")
    seeds = max((v[2] for v in table.values() if isinstance(v, tuple)), default=0)
    lines += ["", f"{seeds} seeds; {platform.machine()}, {time.strftime('%Y-%m-%d')}; options beyond the defaults: "
              f"{' '.join(args.train) or 'none'}.", "", "![AUC against compression](flights.svg)", ""]
    return "\n".join(lines)


def svg(table):
    width, height, left, top, right, bottom = 640, 380, 60, 20, 150, 45
    cells = [(e, c, v) for (e, c), v in table.items() if isinstance(v, tuple) and c > 1]
    full = table.get(("full", 1))
    values = [v[0] for _, _, v in cells] + ([full[0]] if isinstance(full, tuple) else [])
    if not values:
        return None
    low, high = math.floor(min(values) * 100) / 100, math.ceil(max(values) * 100) / 100
    high = high if high > low else low + 0.01
    x = lambda c: left + (math.log10(c) - 0.8) / 2.4 * (width - left - right)
    y = lambda a: top + (high - a) / (high - low) * (height - top - bottom)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
           'font-size="12">', f'<rect width="{width}" height="{height}" fill="white"/>']
    for i in range(6):
        a = low + (high - low) * i / 5
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y(a):.1f}" y2="{y(a):.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{y(a) + 4:.1f}" text-anchor="end">{a:.3f}</text>')
    for c in COMPRESSIONS:
        out.append(f'<text x="{x(c):.1f}" y="{height - bottom + 18}" text-anchor="middle">{c}x</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">times smaller than the full '
               'table</text>')
    if isinstance(full, tuple):
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y(full[0]):.1f}" y2="{y(full[0]):.1f}" stroke="black" '
                   f'stroke-dasharray="4 3"/><text x="{width - right + 8}" y="{y(full[0]) + 4:.1f}">full</text>')
    for i, encoder in enumerate(ENCODERS):
        points = sorted((c, v) for e, c, v in cells if e == encoder)
        if not points:
            continue
        color = COLORS[i % len(COLORS)]
        path = " ".join(f"{x(c):.1f},{y(v[0]):.1f}" for c, v in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for c, v in points:
            s = 0 if math.isnan(v[1]) else v[1]
            out.append(f'<line x1="{x(c):.1f}" x2="{x(c):.1f}" y1="{y(v[0] - s):.1f}" y2="{y(v[0] + s):.1f}" '
                       f'stroke="{color}"/><circle cx="{x(c):.1f}" cy="{y(v[0]):.1f}" r="3" fill="{color}"/>')
        row = top + 40 + 18 * i
        out.append(f'<rect x="{width - right + 12}" y="{row - 9}" width="10" height="10" fill="{color}"/>'
                   f'<text x="{width - right + 28}" y="{row}">{encoder}</text>')
    return "\n".join([*out, "</svg>", ""])


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    args, results = common.parse(parser, "flights.jsonl")
    if not args.report_only:
        measure(args, results)
    table = summary(results)
    text = markdown(table, args)
    (args.out / "flights.md").write_text(text)
    if drawing := svg(table):
        (args.out / "flights.svg").write_text(drawing)
    print(text)


if __name__ == "__main__":
    main()
