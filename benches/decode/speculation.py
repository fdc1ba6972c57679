#!/usr/bin/env python3
"""The speed of drafts: `scrimp run` with and without `--speculate`, in turn, by kind of prompt.

usage: benches/decode/speculation.py MODEL [--draft SMALL] [--rounds 2] [--limit 4] [--kinds code,edit]

Prints a table: for each kind of prompt and source of drafts, the share of accepted tokens and the speed of decoding against
that without drafts (geometric mean over the prompts of the best round each, and its range). The answers must be the same.
"""

import argparse
import json
import math
import pathlib
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def answer(args, prompt, source):
    command = [args.scrimp, "run", args.model, "-", "--max-tokens", args.tokens, "--speculate", source, "--json"]
    command = [*args.prefix.split(), *map(str, command)]
    done = subprocess.run(command, input=prompt, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def measure(args, prompt, sources):
    """The best answer of each source."""
    best = {}
    for _ in range(args.rounds):
        for source in sources:
            got = answer(args, prompt, source)
            if got["text"] != best.get("off", got)["text"]:
                raise SystemExit(f"{source} changed the answer to {prompt!r}")
            if source not in best or got["decode_tok_s"] > best[source]["decode_tok_s"]:
                best[source] = got
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft", help="a smaller model with the same vocabulary")
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=int, default=6, help="prompts of each kind")
    parser.add_argument("--kinds", default="code,edit,question,chat")
    parser.add_argument("--prefix", default="", help="a command before scrimp, such as `chrt -f 20`")
    parser.add_argument("--scrimp", default=str(ROOT / "target/release/scrimp"))
    args = parser.parse_args()
    prompts = json.loads((HERE / "speculation_prompts.json").read_text(encoding="utf-8"))
    sources = ["off", "ngram", *([args.draft] if args.draft else [])]
    print("| prompts | source | tok/s without | accepted | speed | range |\n|---|---|---|---|---|---|")
    for kind in args.kinds.split(","):
        all_best = [measure(args, prompt, sources) for prompt in prompts[kind][:args.limit]]
        off = sum(best["off"]["decode_tok_s"] for best in all_best) / len(all_best)
        for source in sources[1:]:
            ratios = [best[source]["decode_tok_s"] / best["off"]["decode_tok_s"] for best in all_best]
            drafted = sum(best[source]["drafted_tokens"] for best in all_best)
            accepted = sum(best[source]["accepted_tokens"] for best in all_best)
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            print(f"| {kind}, {len(ratios)} | {source} | {off:.1f} | {accepted} of {drafted} | {mean:.2f}x | "
                  f"{min(ratios):.2f}-{max(ratios):.2f} |", flush=True)


if __name__ == "__main__":
    main()
