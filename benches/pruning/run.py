#!/usr/bin/env python3
"""Quality, size and speed of `scrimp compress`, beside llama.cpp's quantizations of the same file. Resumable.

usage: benches/pruning/run.py MODEL.gguf --text prose=book.txt [--text code=code.txt] [options]

Every point is one line of OUT/results.jsonl; points that are there are not measured again, so an interrupted run goes on.
Each is compressed, compared with the original (`scrimp eval kl`: KL divergence, same best token, perplexity) and deleted. `--speed`
times decoding (`scrimp bench decode`) for each format and share of zeros: which weights are zero makes no difference. `--llama` adds llama.cpp's own types, requantized from the same file and
compared with the original as llama.cpp runs it (needs llama-cpp-python). Tables and drawings: report.py.

Calibration is scrimp's built-in text (chapters I to V of Alice), so score other texts.
"""

import argparse
import json
import os
import pathlib
import platform
import struct
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LLAMA_TYPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--name", help="what tables call it [default: the file's name]")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--max-tokens", type=int, default=4096)
    parser.add_argument("--methods", default="magnitude,wanda,sparsegpt")
    parser.add_argument("--sparsities", default="0.2,0.3,0.4,0.5,0.6,0.7")
    parser.add_argument("--formats", default="bf16,int8,int4")
    parser.add_argument("--target-bits", default="", help="mixed budgets, for example 4.5,4,3.5")
    parser.add_argument("--sensitivity", action="store_true", help="also zeros by sensitivity, for sparsegpt")
    parser.add_argument("--llama", default="", help=f"types, or `all`: {','.join(LLAMA_TYPES)}")
    parser.add_argument("--speed", action="store_true", help="time decoding, too (wants a quiet machine)")
    parser.add_argument("--calibration", help="text for scrimp compress")
    parser.add_argument("--scrimp", default=str(ROOT / "target/release/scrimp"))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/pruning")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    args.texts = dict(t.split("=", 1) for t in args.text)
    args.name = args.name or args.model.stem
    return args


def points(args):
    """(method, format, options of compress) of everything that is to be measured."""
    for fmt in args.formats.split(","):
        yield "none", fmt, 0.0, ["--format", fmt, "--method", "sparsegpt"]
    for sparsity in filter(None, args.sparsities.split(",")):
        for fmt in args.formats.split(","):
            for method in args.methods.split(","):
                yield method, fmt, float(sparsity), ["--format", fmt, "--method", method, "--sparsity", sparsity]
            if args.sensitivity:
                yield "sparsegpt by layer", fmt, float(sparsity), [
                    "--format", fmt, "--sparsity", sparsity, "--allocation", "sensitivity"]
    for bits in filter(None, args.target_bits.split(",")):
        yield "mixed", f"{bits} bits", 0.0, ["--target-bits", bits]


class Bench:
    """The results so far, and where new ones go."""

    def __init__(self, args):
        self.args = args
        args.out.mkdir(parents=True, exist_ok=True)
        self.path = args.out / "results.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.done = {self.key(json.loads(line)) for line in lines}
        # How the output matrix is stored does not depend on the layers: it is measured for the first file only.
        self.output = "auto"

    @staticmethod
    def key(row):
        return row["model"], row["engine"], row["method"], row["format"], row["sparsity"]

    def measured(self, row):
        return self.key(row) in self.done

    def add(self, row):
        row |= {"date": time.strftime("%Y-%m-%d"), "machine": platform.processor() or platform.machine()}
        with open(self.path, "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        self.done.add(self.key(row))
        print(json.dumps(row), flush=True)

    def scrimp(self, *command):
        """Runs a verb and returns its JSON."""
        command = [self.args.scrimp, *map(str, command), "--threads", str(self.args.threads), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def quality(self, model):
        """KL and the like on every text, in the forms `kl.prose`, `top1.prose`, `ppl.prose`."""
        out = {}
        for name, text in self.args.texts.items():
            got = self.scrimp("eval", "kl", model, "--against", self.args.model, "--text", text,
                              "--max-tokens", self.args.max_tokens)
            out |= {f"kl.{name}": got["kl"], f"top1.{name}": got["top1_agreement"], f"ppl.{name}": got["ppl"]}
        return out

    def compress(self, options):
        """Compresses the model and returns the file, and what the command says of it."""
        path = self.args.out / f"{self.args.name}.safetensors"
        calibration = ["--calibration", self.args.calibration] if self.args.calibration else []
        got = self.scrimp("compress", self.args.model, "-o", path, *options, *calibration, "--output", self.output)
        if self.output == "auto":
            self.output = output_format(path)
        return path, got


def output_format(path):
    """What `--output auto` chose for a compressed file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        tensors = json.loads(json.loads(file.read(length))["__metadata__"]["scrimp.tensors"])
    name = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    kind = tensors.get(name, {}).get("type", "keep")
    return kind if kind in ("bf16", "int8", "int4") else "keep"


def original(bench):
    args = bench.args
    row = {"model": args.name, "engine": "scrimp", "method": "original", "format": args.model.name, "sparsity": 0.0}
    if bench.measured(row):
        return
    row["bytes"] = args.model.stat().st_size
    for name, text in args.texts.items():
        row[f"ppl.{name}"] = bench.scrimp("eval", "ppl", args.model, "--text", text, "--max-tokens", args.max_tokens)["ppl"]
        row |= {f"kl.{name}": 0.0, f"top1.{name}": 1.0}
    bench.add(row)


def compressed(bench):
    args = bench.args
    for method, fmt, sparsity, options in points(args):
        row = {"model": args.name, "engine": "scrimp", "method": method, "format": fmt, "sparsity": sparsity}
        if bench.measured(row):
            continue
        start = time.monotonic()
        path, got = bench.compress(options)
        row |= {"bytes": got["bytes_after"], "zeros": got["sparsity"], "bits_per_weight": got["bits_per_weight"],
                "compress_s": round(time.monotonic() - start, 1)}
        bench.add(row | bench.quality(path))
        path.unlink()


def speeds(bench):
    """Tokens per second of the original, and of everything that has one format and one share of zeros."""
    args = bench.args
    wanted = {(args.model.name, 0.0): None}
    for method, fmt, sparsity, _ in points(args):
        if method in ("none", *args.methods.split(",")):
            wanted[fmt, sparsity] = ["--format", fmt, "--method", "magnitude", "--sparsity", sparsity]
    for (fmt, sparsity), options in wanted.items():
        row = {"model": args.name, "engine": "scrimp", "method": "speed", "format": fmt, "sparsity": sparsity}
        if bench.measured(row):
            continue
        path = args.model if options is None else bench.compress(options)[0]
        got = bench.scrimp("bench", "decode", path, "--prompt", 64, "--tokens", 64)
        bench.add(row | {"decode_tok_s": got["decode_tok_s"]})
        if options is not None:
            path.unlink()


def llama(bench):
    """llama.cpp's own types, by its own engine."""
    args = bench.args
    types = LLAMA_TYPES if args.llama == "all" else list(filter(None, args.llama.split(",")))
    def wanted(method):
        rows = ({"model": args.name, "engine": "llama.cpp", "method": method, "format": t, "sparsity": 0.0} for t in types)
        return {row["format"]: row for row in rows if not bench.measured(row)}

    quality, speed = wanted("quantize"), wanted("speed") if args.speed else {}
    if not quality and not speed:
        return
    import ctypes

    import llama_cpp
    import numpy as np

    def load(path):
        return llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, n_threads=args.threads, logits_all=True, verbose=False)

    def windows(engine, text):
        ids = engine.tokenize(pathlib.Path(text).read_bytes(), add_bos=False, special=False)[: args.max_tokens]
        bos = [engine.token_bos()] if engine.metadata.get("tokenizer.ggml.add_bos_token") == "true" else []
        step = 512 - len(bos)
        return [bos + ids[i : i + step] for i in range(0, len(ids) - step + 1, step)]

    def log_probabilities(engine, window):
        engine.reset()
        engine.eval(window)
        logits = np.array(engine.scores[: len(window) - 1], dtype=np.float32)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    reference = load(args.model)
    for kind in types:
        if kind not in quality and kind not in speed:
            continue
        path = args.out / f"{args.name}.{kind}.gguf"
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        params.allow_requantize = True
        params.nthread = args.threads
        status = llama_cpp.llama_model_quantize(str(args.model).encode(), str(path).encode(), ctypes.byref(params))
        if status != 0:
            raise SystemExit(f"llama.cpp cannot make {kind}: {status}")
        engine = load(path)
        if kind in quality:
            row = quality[kind] | {"bytes": path.stat().st_size}
            for name, text in args.texts.items():
                kl = same = nll = n = 0.0
                for window in windows(reference, text):
                    p, q = log_probabilities(reference, window), log_probabilities(engine, window)
                    kl += float((np.exp(p) * (p - q)).sum())
                    same += float((p.argmax(-1) == q.argmax(-1)).sum())
                    nll -= float(q[np.arange(len(q)), window[1:]].sum())
                    n += len(q)
                row |= {f"kl.{name}": kl / n, f"top1.{name}": same / n, f"ppl.{name}": float(np.exp(nll / n))}
            bench.add(row)
        if kind in speed:
            engine.reset()
            engine.eval(windows(reference, next(iter(args.texts.values())))[0][:64])
            best = 0.0
            for _ in range(3):
                start = time.monotonic()
                for _ in range(64):
                    engine.eval([100])
                best = max(best, 64 / (time.monotonic() - start))
            bench.add(speed[kind] | {"decode_tok_s": best})
        del engine
        path.unlink()


def main():
    bench = Bench(arguments())
    original(bench)
    compressed(bench)
    if bench.args.speed:
        speeds(bench)
    llama(bench)


if __name__ == "__main__":
    main()
