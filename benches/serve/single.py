#!/usr/bin/env python3
"""One stream through the server against `scrimp run`: the time of a prompt of 100 tokens and 256 more, rounds alternating. Not at real-time
priority: the engine would keep the cores from those who send its text.

usage: benches/serve/single.py MODEL [--rounds 5] [--scrimp target/release/scrimp]
"""

import argparse
import json
import statistics
import subprocess
import time

from together import ROOT, Server

PROMPT = (ROOT / "crates/scrimp-llm/assets/alice.txt").read_text(encoding="utf-8")[2000:2400]
TOKENS = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scrimp", default=str(ROOT / "target/release/scrimp"))
    args = parser.parse_args()
    server = Server(args.scrimp, args.model)
    ratios = []
    for _ in range(args.rounds):
        start = time.monotonic()
        _, prompt_tokens, *_ = server.decode(PROMPT, TOKENS)
        served = time.monotonic() - start
        command = [args.scrimp, "run", args.model, "--raw", PROMPT, "--max-tokens", TOKENS, "--temperature", 0, "--json"]
        got = json.loads(subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout)
        alone = prompt_tokens / got["prefill_tok_s"] + TOKENS / got["decode_tok_s"]
        ratios.append(alone / served)
        print(f"served in {served:.2f} s, alone in {alone:.2f} s: {ratios[-1]:.3f}", flush=True)
    server.stop()
    print(json.dumps({"speed": statistics.median(ratios), "spread": [min(ratios), max(ratios)]}))


if __name__ == "__main__":
    main()
