#!/usr/bin/env python3
"""All three methods in one process, against llama.cpp on the file that the weights come from: memory, and speed of decoding behind a long prompt.

usage: benches/serve/together.py PRUNED.safetensors MODEL.gguf --rec REC.safetensors --rows ROWS.jsonl --text FILE --llama PYTHON [--tokens 7600] [--rounds 3]

PRUNED: `scrimp compress MODEL.gguf --sparsity 0.5 --format int4`. REC: a model of `scrimp rec train`, ROWS: rows for it, one JSON object a line. PYTHON: one
with llama-cpp-python. Both sides get the same prompt; rounds alternate. scrimp's memory is that of the whole server with both models loaded, scoring included.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEER = ROOT / "benches/llama_cpp/peers/llama_cpp_bench.py"
KV = ["--kv-budget", "0.25", "--kv-policy", "snapkv", "--kvcrush", "0.25", "--kv-format", "int8"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruned")
    parser.add_argument("gguf")
    for name in ("rec", "rows", "text", "llama"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tokens", type=int, default=7600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scrimp", default=str(ROOT / "target/release/scrimp"))
    return parser.parse_args()


class Server:
    """`scrimp serve` of a model, on a port of its own."""

    def __init__(self, scrimp, model, *options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [scrimp, "serve", model, "--port", port, "--log", "off", *options]
        self.process = subprocess.Popen([str(part) for part in command])
        self.url = f"http://127.0.0.1:{port}"
        while True:
            try:
                urllib.request.urlopen(self.url + "/ready").close()
                return
            except OSError:
                time.sleep(0.1)

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return urllib.request.urlopen(request)

    def prompt(self, text, tokens):
        """The longest beginning of a text that is no more than so many tokens."""
        with self.post("/tokenize", {"prompt": text}) as got:
            count = json.load(got)["count"]
        return text[: int(len(text) * tokens / count)]

    def decode(self, prompt, new=64):
        """Tokens per second behind a prompt, tokens of the prompt, bytes of its cache and seconds to the first token."""
        start = time.monotonic()
        body = {"prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
        times, usage = [], {}
        with self.post("/v1/completions", body) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    usage = event.get("usage") or usage
                    times += [time.monotonic()] * bool(event["choices"])
        # Text comes in pieces that may hold several tokens: count those between the first and the last piece by time.
        return (new - 1) / (times[-1] - times[0]), usage["prompt_tokens"], usage["kv_bytes"], times[0] - start

    def memory(self):
        """Resident memory, now and at most, MiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return [int(status.split(f"{name}:")[1].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")]

    def stop(self):
        self.process.terminate()
        self.process.wait()


def main():
    args = arguments()
    rows = [json.loads(line) for line in pathlib.Path(args.rows).read_text().splitlines()]
    text = pathlib.Path(args.text).read_text(encoding="utf-8")
    ours, theirs, scores = [], [], []
    for _ in range(args.rounds):
        server = Server(args.scrimp, args.pruned, "--rec", args.rec, "--threads", args.threads, *KV)
        prompt = server.prompt(text, args.tokens)
        stop = threading.Event()

        def score():
            while not stop.wait(1.0):
                start = time.monotonic()
                with server.post("/v1/score", {"rows": rows}) as got:
                    scores.append(len(json.load(got)["scores"]) / (time.monotonic() - start))

        scorer = threading.Thread(target=score)
        scorer.start()
        speed, prompt_tokens, kv_bytes, first = server.decode(prompt)
        stop.set()
        scorer.join()
        now, peak = server.memory()
        server.stop()
        ours.append({"tok_s": speed, "first_s": first, "rss_mib": now, "peak_mib": peak, "kv_bytes": kv_bytes, "prompt_tokens": prompt_tokens})

        def peer(*what):
            done = subprocess.run([args.llama, PEER, *map(str, what)], capture_output=True, text=True, check=True)
            return json.loads(done.stdout.splitlines()[-1])

        got, memory = peer("speed", args.gguf, args.threads, prompt_tokens, args.text), peer("memory", args.gguf, args.threads, args.text)
        theirs.append({"tok_s": got["decode_tok_s"], "peak_mib": memory["peak_rss_mib"] - memory["interpreter_mib"]})
        print(json.dumps({"scrimp": ours[-1], "llama.cpp": theirs[-1]}), flush=True)
    median = lambda rows, key: statistics.median(row[key] for row in rows)
    ratios = [a["tok_s"] / b["tok_s"] for a, b in zip(ours, theirs)]
    print(json.dumps({
        "tok_s": [median(ours, "tok_s"), median(theirs, "tok_s")], "faster": statistics.median(ratios), "spread": [min(ratios), max(ratios)],
        "memory_now": median(ours, "rss_mib") / median(theirs, "peak_mib"), "memory_at_most": median(ours, "peak_mib") / median(theirs, "peak_mib"),
        "rows_scored_per_s": statistics.median(scores) if scores else None}))


if __name__ == "__main__":
    main()
