#!/usr/bin/env python3
"""Instructions per product of one linear layer on 64-bit ARM: scrimp beside ggml (llama.cpp), counted by an emulator.

usage: benches/arm/count.py [--formats LIST] [--tokens LIST] [--levels LIST] [--rows N] [--cols N]
                            [--ggml DIR] [--mca LLVM-MCA] [--hot N]

The tools are those of scripts/test-arm, which names the packages. --ggml is a folder made by benches/arm/ggml.sh;
without it, the table has scrimp only. --mca is a command such as llvm-mca-22: a slice of the executed instructions
then goes through its models of CPUs. --hot N prints the N most executed blocks of instructions.

A count is the difference of two runs with different numbers of repetitions, divided by the repetitions, rows, columns
and tokens; set-up cancels. It includes the quantization of the activations. QEMU writes the instructions of each block
when it translates it, and a line whenever a block runs. The result is a Markdown table for benches/RESULTS.md: counted
figures, and figures that a model computes; none is measured on a chip.
"""

import argparse
import collections
import importlib.machinery
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
loader = importlib.machinery.SourceFileLoader("scripts_test_arm", str(ROOT / "scripts" / "test-arm"))
test_arm = importlib.util.module_from_spec(importlib.util.spec_from_loader("scripts_test_arm", loader))
loader.exec_module(test_arm)

EXAMPLE = ROOT / "target" / test_arm.TARGET / "release" / "examples" / "count_linear"
# ggml's type for a format of scrimp; formats of the same name are left out.
GGML_TYPES = {"int8": "q8_0", "int4": "q4_0"}
# CPUs in llvm-mca whose level is at least the key.
CPUS = {"neon": ["cortex-a72"], "dotprod": ["cortex-a76", "neoverse-n1", "apple-m1"], "i8mm": ["neoverse-v1", "neoverse-v2"]}
# Instructions of a slice for llvm-mca.
SLICE = 12000
REPEATS = (1, 3)


class Trace:
    """The blocks that a program executes under the emulator."""

    def __init__(self, level, command):
        cpu = next(cpu for cpu, name in test_arm.CPUS.items() if name == level)
        emulator = [*test_arm.emulator(cpu), "-d", "exec,nochain,in_asm", "-D", "/dev/stderr"]
        self.command = [*emulator, *map(str, command)]
        self.env = {**os.environ, "SCRIMP_TIER": level}

    def blocks(self):
        """Yields the instructions of every executed block, as hexadecimal numbers."""
        with subprocess.Popen(self.command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
            known, new = {}, None
            for line in run.stderr:
                if line.startswith(b"Trace"):
                    block = line.split(b"/", 2)[1]
                    if new:
                        known[int(new[0][0], 16)] = tuple(code for _, code in new)
                        new = None
                    yield int(block, 16), known[int(block, 16)]
                elif line.startswith(b"IN:"):
                    if new:
                        known[int(new[0][0], 16)] = tuple(code for _, code in new)
                    new = []
                elif line.startswith(b"0x"):
                    address, rest = line.split(b":", 1)
                    new.append((address, rest.split(None, 1)[0].decode()))
        if run.returncode != 0:
            raise SystemExit(f"{' '.join(self.command)}: exit status {run.returncode}")

    def count(self):
        """Executed instructions."""
        return sum(len(block) for _, block in self.blocks())

    def slice(self, first, n):
        """`n` executed instructions from the number `first` on."""
        codes, at = [], 0
        for _, block in self.blocks():
            if at >= first:
                codes.extend(block)
            at += len(block)
            if len(codes) >= n:
                break
        return codes[:n]

    def hot(self, n):
        """The most executed blocks: instructions in all executions, address, executions and codes."""
        runs, codes = collections.Counter(), {}
        for address, block in self.blocks():
            runs[address] += 1
            codes[address] = block
        weighted = sorted(((k * len(codes[a]), a, k, codes[a]) for a, k in runs.items()), reverse=True)
        return weighted[:n]


class Case:
    """One format, batch and level of one side."""

    def __init__(self, args, program, level, name, tokens):
        self.level, self.products = level, args.rows * args.cols * tokens
        self.command = lambda repeats: [program, name, args.rows, args.cols, tokens, repeats]
        counts = [Trace(level, self.command(repeats)).count() for repeats in REPEATS]
        self.total, self.repeat = counts[1], (counts[1] - counts[0]) / (REPEATS[1] - REPEATS[0])

    def per_product(self):
        """Instructions per weight and token."""
        return self.repeat / self.products

    def assembly(self):
        """A slice of the last repetition, as assembly."""
        first = self.total - self.repeat * 0.6
        codes = Trace(self.level, self.command(REPEATS[1])).slice(first, SLICE)
        octets = "\n".join(" ".join(f"0x{c[i:i + 2]}" for i in (6, 4, 2, 0)) for c in codes)
        done = subprocess.run(["llvm-mc" + suffix(), "--disassemble", "-triple=aarch64", "-mattr=+all"], input=octets,
                              capture_output=True, text=True, check=True)
        return done.stdout, len(codes)


def suffix():
    """The version at the end of the command's name."""
    return re.search(r"(-\d+)?$", ARGS.mca).group(0)


def cycles(cpu, assembly, instructions):
    """Cycles per instruction in llvm-mca's model of a CPU."""
    done = subprocess.run([ARGS.mca, "-mtriple=aarch64", f"-mcpu={cpu}", "-iterations=1", "-mattr=+all",
                           "--instruction-info=0", "--resource-pressure=0"], input=assembly,
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"llvm-mca: {done.stderr[-500:]}")
    return int(re.search(r"Total Cycles:\s+(\d+)", done.stdout).group(1)) / instructions


def print_hot(case):
    """The most executed blocks of a case."""
    for share, address, runs, codes in Trace(case.level, case.command(REPEATS[1])).hot(ARGS.hot):
        print(f"# {address:#x}: {len(codes)} instructions, {runs} executions, {share} in all")


def row(level, format_, tokens):
    """A line of the table."""
    ours = Case(ARGS, EXAMPLE, level, format_, tokens)
    cells = [format_, str(tokens), level, f"{ours.per_product():.4f}"]
    if ARGS.hot:
        print_hot(ours)
    peer = ARGS.ggml and not format_.startswith("sparse") and pathlib.Path(ARGS.ggml) / f"ggml_linear.{level}"
    theirs = Case(ARGS, peer, level, GGML_TYPES.get(format_, format_), tokens) if peer else None
    cells += [f"{theirs.per_product():.4f}", f"{ours.per_product() / theirs.per_product():.2f}"] if theirs else ["", ""]
    if ARGS.mca:
        sides = [(case, *case.assembly()) for case in (ours, theirs) if case]
        for cpu in CPUS[level]:
            figures = [f"{1000 * case.per_product() * cycles(cpu, text, n):.1f}" for case, text, n in sides]
            cells.append(f"{cpu} {' / '.join(figures)}")
    return "| " + " | ".join(cells) + " |"


def main():
    env = {**os.environ, **test_arm.cargo_environment("max")}
    build = ["cargo", "build", "--release", "-q", "-p", "scrimp-kernels", "--example", "count_linear"]
    if not ARGS.no_build:
        subprocess.run(build, cwd=ROOT, env=env, check=True)
    print("| format | tokens | level | scrimp | ggml | ratio | cycles per 1000 products, scrimp / ggml |")
    print("|---|---|---|---|---|---|---|")
    for tokens in ARGS.tokens.split(","):
        for format_ in ARGS.formats.split(","):
            for level in ARGS.levels.split(","):
                print(row(level, format_, int(tokens)), flush=True)


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="int8,q8_0,q4_k", help="names of formats")
    parser.add_argument("--tokens", default="1", help="sizes of batches")
    parser.add_argument("--levels", default="neon,dotprod,i8mm", help="SIMD levels")
    parser.add_argument("--rows", type=int, default=1024, help="out features")
    parser.add_argument("--cols", type=int, default=2048, help="in features")
    parser.add_argument("--ggml", help="folder with ggml_linear.LEVEL")
    parser.add_argument("--mca", help="the command of llvm-mca")
    parser.add_argument("--hot", type=int, default=0, help="blocks to print")
    parser.add_argument("--no-build", action="store_true", help="run the programs as they are")
    return parser.parse_args()


if __name__ == "__main__":
    ARGS = arguments()
    sys.exit(main())
