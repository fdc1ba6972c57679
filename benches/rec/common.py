"""The command-line options and the log of results that the benchmarks of recommenders share."""

import argparse
import json
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def parser(description):
    """A parser with the options of every benchmark."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--scrimp", type=pathlib.Path, default=ROOT / "target" / "release" / "scrimp")
    options.add_argument("--work", type=pathlib.Path, default=ROOT / "target" / "bench-rec")
    options.add_argument("--out", type=pathlib.Path, default=HERE)
    options.add_argument("--report-only", action="store_true")
    options.add_argument("train", nargs="*", help="further options of `scrimp rec train`, after --")
    return options


def parse(options, log):
    """The arguments, and the path of the file `log` in the work directory, which is created."""
    args = options.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    return args, args.work / log


def rows(log):
    """The results in a log."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.strip()] if log.exists() else []


def append(log, row):
    """Adds a result to a log and prints it."""
    with log.open("a") as out:
        out.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)
