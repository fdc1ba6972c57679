#!/usr/bin/env python3
"""CriteoTB's cardinalities, generated: memrec at 2900x against the other encoders and, with capped cardinalities, the full table.

usage: benches/rec/criteo_tb.py [--scrimp target/release/scrimp] [--work target/bench-rec] [--rows 20000000] [--cap 0]
                                [--encoders memrec,hashing,robe] [--dtype int4] [--compression 2900] [--dim 128] [--seed 1] [--report-only]

The rows are generated in memory; validation rows come from another range of the same stream. --cap N limits every cardinality
to N, so that a full table fits in memory (`--cap 150000 --dim 64 --encoders full,memrec`). WORK/criteo_tb.jsonl has a line per
finished training. An interrupted training resumes from its checkpoint.
"""

import json
import os
import platform
import subprocess
import tempfile
import time

import common


def train(args, encoder):
    cap = f",cap={args.cap}" if args.cap else ""
    name = f"tb-{encoder}-{args.dtype}-{args.seed}"
    model, checkpoint = args.work / f"{name}.model", args.work / f"{name}.checkpoint"
    command = [args.scrimp, "rec", "train", f"generate:criteo-tb,rows={args.rows}{cap}", "-o", model, "--encoder", encoder,
               "--valid", f"generate:criteo-tb,rows={args.valid},first={10**10}{cap}", "--dim", args.dim, "--epochs", 1,
               "--batch", 2048, "--shuffle", 0, "--seed", args.seed, "--json"]
    if encoder != "full":
        command += ["--compression", args.compression, "--dtype", args.dtype]
        # A checkpoint of gigabytes costs more than it saves.
        command += ["--checkpoint", checkpoint, "--checkpoint-steps", 500]
    # Output to files, so that wait4 can tell the memory of this one process.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(list(map(str, command + args.train)), stdout=out, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        said.seek(0)
        if process.returncode:
            return {"encoder": encoder, "error": said.read().strip().splitlines()[-1:]}
        return json.loads(out.read().splitlines()[-1]) | {"peak_rss_bytes": usage.ru_maxrss * 1024}


def report(results):
    lines = ["# CriteoTB's cardinalities, generated", "",
             "| encoder | rows in | seed | cap on cardinalities | dim | rows | AUC | log loss | embeddings | full table | times | rows/s | peak RSS |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for r in common.rows(results):
        if "error" in r:
            continue
        lines.append(f"| {r['encoder']} | {r['dtype']} | {r.get('seed', 1)} | {r['cap'] or 'none'} | {r['dim']} | {r['rows']:,} | {r['auc']:.4f} | {r['logloss']:.4f} | "
                     f"{r['embedding_bytes'] / 1e6:,.1f} MB | {r['full_embedding_bytes'] / 1e6:,.0f} MB | "
                     f"{r['compression']:,.0f} | {r['rows_per_second']:,.0f} | {r['peak_rss_bytes'] / 1e9:.2f} GB |")
    lines += ["", "The size of the full table counts the distinct ids of the training rows.",
              f"{platform.machine()}, {time.strftime('%Y-%m-%d')}; made by `benches/rec/criteo_tb.py`.", ""]
    return "\n".join(lines)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--valid", type=int, default=500_000)
    parser.add_argument("--cap", type=int, default=0)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--compression", type=float, default=2900)
    parser.add_argument("--encoders", default="memrec,hashing,robe")
    parser.add_argument("--dtype", default="int4")
    parser.add_argument("--seed", type=int, default=1)
    args, results = common.parse(parser, "criteo_tb.jsonl")
    keys = ["encoder", "cap", "dim", "rows_wanted", "compression_wanted", "dtype", "seed"]
    done = {tuple(r.get(k) for k in keys) for r in common.rows(results) if "error" not in r}
    for encoder in [] if args.report_only else args.encoders.split(","):
        key = (encoder, args.cap, args.dim, args.rows, *((1.0, "f32") if encoder == "full" else (args.compression, args.dtype)), args.seed)
        if key in done:
            continue
        common.append(results, dict(zip(keys, key)) | train(args, encoder))
    text = report(results)
    (args.out / "criteo_tb.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
