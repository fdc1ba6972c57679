"""Measures scrimp and its peers in turn and writes every figure (JSON lines) and a table (Markdown).

Run it through run.sh. Both sides of a line come from the same run: scrimp, peer, peer, scrimp, ... for --rounds rounds;
the table gives medians, the ratio of the medians, and the smallest and largest ratio of a round.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import time

from report import MODELS, table

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TEXT = ROOT / "testdata" / "text" / "alice_excerpt.txt"
PROMPT = "The capital of France is"
MEASURES = ["speed", "deep", "memory", "first", "openvino"]


def last_json(command, what):
    """Runs a command and parses the last line of its output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{what} failed ({done.returncode}): {' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class Bench:
    """One run: the two sides' commands, and the file that every measurement is appended to."""

    def __init__(self, args):
        self.args = args
        self.out = open(f"{args.out}.jsonl", "w", encoding="utf-8")
        self.rows = []

    def record(self, model, measure, side, round_number, **values):
        row = {"model": model, "measure": measure, "side": side, "round": round_number, **values}
        self.rows.append(row)
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()
        print(json.dumps(row), file=sys.stderr)

    def scrimp(self, *arguments):
        return last_json([self.args.scrimp, *arguments, "--threads", self.args.threads, "--json"], "scrimp")

    def scrimp_decode(self, path, prompt, tokens, depth):
        return self.scrimp("bench", "decode", path, "--prompt", prompt, "--tokens", tokens, "--depth", depth)

    def peer(self, script, *arguments):
        return last_json([sys.executable, HERE / "peers" / script, *arguments], script)

    def in_turn(self, round_number, *sides):
        """Runs the sides in an order that alternates from round to round, so that drift hits both."""
        for side in sides if round_number % 2 == 0 else reversed(sides):
            side()

    def speed(self, model, path, depth, round_number):
        measure = "speed" if depth == 8 else "deep"

        def ours():
            got = self.scrimp_decode(path, 512, 64, depth)
            self.record(model, measure, "scrimp", round_number, prefill=got["prefill_tok_s"], decode=got["decode_tok_s"])

        def theirs():
            got = self.peer("llama_cpp_bench.py", "speed", path, self.args.threads, depth, TEXT)
            self.record(model, measure, "llama.cpp", round_number, prefill=got["prefill_tok_s"], decode=got["decode_tok_s"],
                        version=got["version"])

        sides = [ours, theirs]
        if self.args.ik and depth == 8:
            sides.append(lambda: self.ik(model, path, round_number))
        self.in_turn(round_number, *sides)

    def ik(self, model, path, round_number):
        """A llama-bench binary that the user built; the order of its rows is prefill, decode."""
        command = [self.args.ik, "-m", path, "-p", 512, "-n", 64, "-t", self.args.threads, "-r", 3, "-o", "json"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        tests = json.loads(done.stdout[done.stdout.index("["):])
        best = {("prefill" if t["n_prompt"] else "decode"): max(t.get("samples_ts") or [t["avg_ts"]]) for t in tests}
        self.record(model, "speed", "ik", round_number, **best)

    def memory(self, model, path):
        """Both with room for 8192 tokens: ours really holds them, llama.cpp reserves and clears its cache at once."""
        ours = self.scrimp_decode(path, 512, 32, 8128)
        self.record(model, "memory", "scrimp", 0, mib=ours["peak_rss_bytes"] / 2**20)
        theirs = self.peer("llama_cpp_bench.py", "memory", path, self.args.threads, TEXT)
        self.record(model, "memory", "llama.cpp", 0, mib=theirs["peak_rss_mib"] - theirs["interpreter_mib"],
                    with_interpreter=theirs["peak_rss_mib"])

    def first_token(self, model, path, round_number):
        """scrimp: from the start of the process to the first byte on stdout. llama.cpp: without Python's imports."""

        def ours():
            command = [self.args.scrimp, "run", path, PROMPT, "--raw", "--max-tokens", "1", "--temperature", "0",
                       "--threads", str(self.args.threads)]
            start = time.perf_counter()
            with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                got = process.stdout.read(1)
                seconds = time.perf_counter() - start
            if not got:
                raise SystemExit("scrimp run printed nothing")
            self.record(model, "first", "scrimp", round_number, seconds=seconds)

        def theirs():
            got = self.peer("llama_cpp_bench.py", "first", path, self.args.threads, PROMPT)
            self.record(model, "first", "llama.cpp", round_number, seconds=got["first_token_s"],
                        with_imports=got["with_imports_s"])

        self.in_turn(round_number, ours, theirs)

    def openvino(self, model, path, round_number):
        tokens = 3145

        def ours():
            got = self.scrimp_decode(path, tokens, 64, tokens)
            self.record(model, "openvino", "scrimp", round_number, prefill=got["prefill_tok_s"],
                        decode=got["decode_tok_s"])

        def theirs():
            got = self.peer("openvino_bench.py", path, self.args.threads, tokens, TEXT)
            self.record(model, "openvino", "openvino", round_number, prefill=got["prefill_tok_s"],
                        decode=got["decode_tok_s"], prompt_tokens=got["prompt_tokens"], version=got["version"])

        self.in_turn(round_number, ours, theirs)

    def round(self, round_number, paths):
        bandwidth = self.scrimp("doctor").get("read_gb_per_s")
        self.record("machine", "bandwidth", "scrimp", round_number, gb_per_s=bandwidth)
        wanted = self.args.measures
        for model, path in paths.items():
            if "speed" in wanted:
                self.speed(model, path, 8, round_number)
            if "deep" in wanted and model in self.args.deep:
                self.speed(model, path, 4096, round_number)
            if "first" in wanted:
                self.first_token(model, path, round_number)
            if "openvino" in wanted and model == "smollm2":
                self.openvino(model, path, round_number)
            if "memory" in wanted and round_number == 0:
                self.memory(model, path)


def find_models(args):
    """alias -> path, from SCRIMP_TEST_MODELS or by `scrimp pull`."""
    folder = os.environ.get("SCRIMP_TEST_MODELS")
    paths = {}
    for alias in args.models:
        path = pathlib.Path(folder) / MODELS[alias]["file"] if folder else None
        if not path or not path.is_file():
            path = pathlib.Path(last_json([args.scrimp, "pull", alias, "--json"], f"scrimp pull {alias}")["path"])
        path.read_bytes()  # a warm file cache for both sides
        paths[alias] = path
    return paths


def machine():
    """CPU, cores, memory and date, for the table's head."""
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    flags = next((line for line in open("/proc/cpuinfo") if line.startswith("flags")), "")
    wide = "AVX-512" + (" VNNI" if "avx512_vnni" in flags else "") if "avx512f" in flags else "no AVX-512"
    memory = int(open("/proc/meminfo").readline().split()[1]) / 2**20
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {"cpu": cpu, "isa": wide, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1),
            "date": datetime.date.today().isoformat(), "commit": commit.stdout.strip()}


def main():
    def comma_list(known):
        def parse(text):
            items = text.split(",")
            unknown = [item for item in items if item not in known]
            if unknown:
                raise argparse.ArgumentTypeError(f"{unknown[0]}: not one of {', '.join(known)}")
            return items
        return parse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="results go to OUT.jsonl and OUT.md")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--models", type=comma_list(list(MODELS)), default=list(MODELS))
    parser.add_argument("--measures", type=comma_list(MEASURES), default=MEASURES)
    parser.add_argument("--deep", type=comma_list(list(MODELS)), default=["smollm2"], help="models decoded at depth 4096")
    parser.add_argument("--ik", help="a llama-bench binary of ik_llama.cpp, built elsewhere, measured beside the others")
    parser.add_argument("--int8-tops", type=float, default=0.9, help="the machine's int8 ceiling with these threads, TOP/s")
    parser.add_argument("--scrimp", default=str(ROOT / "target" / "release" / "scrimp"))
    args = parser.parse_args()
    bench = Bench(args)
    bench.record("machine", "machine", "scrimp", 0, threads=args.threads, int8_tops=args.int8_tops, **machine())
    paths = find_models(args)
    for number in range(args.rounds):
        bench.round(number, paths)
    text = table(bench.rows)
    pathlib.Path(f"{args.out}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
