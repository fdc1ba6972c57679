#!/usr/bin/env python3
"""Decode end to end: a synthetic model against transformers, and a compressed real one against llama.cpp, in turn.

usage: PYTHON benches/decode/run.py --synthetic llama-3.2-1b [--rounds 3]
       PYTHON benches/decode/run.py --model SMALL.safetensors --against MODEL.gguf [--rounds 3]

PYTHON has torch and transformers (first form) or llama-cpp-python (second form). Prints a table: medians over the rounds,
the ratio of the medians and the smallest and largest ratio within a round.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def last_json(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def sides(args):
    """Names of what is compared, the peer first, and how one figure of each is had (tokens per second)."""
    def scrimp(*options):
        command = [args.scrimp, "bench", "decode", *options, "--prompt", 64, "--tokens", 64, "--threads", args.threads, "--json"]
        return lambda: last_json(command)["decode_tok_s"]
    if args.synthetic:
        peer = [sys.executable, HERE / "transformers_decode.py", args.synthetic, args.threads]
        yield "transformers bf16", lambda: last_json(peer)["decode_tok_s"]
        for name in args.formats.split(","):
            yield f"scrimp {name}", scrimp("--synthetic", args.synthetic, "--format", name, "--sparsity", args.sparsity)
        return
    peer = [sys.executable, ROOT / "benches/llama_cpp/peers/llama_cpp_bench.py", "speed", args.against, args.threads, 64,
            ROOT / "testdata/text/alice_excerpt.txt"]
    yield f"llama.cpp {args.against.name}", lambda: last_json(peer)["decode_tok_s"]
    yield f"scrimp {args.against.name}", scrimp(args.against)
    for model in args.model:
        yield f"scrimp {model.name}", scrimp(model)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", metavar="SHAPE")
    parser.add_argument("--formats", default="bf16,sparse-bf16,int8,sparse-int8,int4,sparse-int4")
    parser.add_argument("--sparsity", default="0.5")
    parser.add_argument("--model", type=pathlib.Path, action="append", default=[])
    parser.add_argument("--against", type=pathlib.Path, metavar="MODEL.gguf")
    parser.add_argument("--scrimp", default=str(ROOT / "target/release/scrimp"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if bool(args.synthetic) == bool(args.against):
        parser.error("one of --synthetic and --against")
    figures = {}
    for turn in range(args.rounds):
        todo = list(sides(args))
        for name, measure in todo if turn % 2 == 0 else reversed(todo):
            figures.setdefault(name, {})[turn] = measure()
            print(f"round {turn + 1}: {name}: {figures[name][turn]:.1f} tok/s", file=sys.stderr)
    peer_name, _ = next(iter(sides(args)))
    peer = figures.pop(peer_name)
    middle = lambda values: statistics.median(values.values())
    print("| | tok/s | against the peer (spread) |\n|---|---|---|")
    print(f"| {peer_name} | {middle(peer):.1f} | 1 |")
    for name, own in figures.items():
        ratios = [own[turn] / peer[turn] for turn in peer]
        print(f"| {name} | {middle(own):.1f} | {middle(own) / middle(peer):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |")


if __name__ == "__main__":
    main()
