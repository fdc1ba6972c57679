"""Throughput of the Ray examples with one worker and with two, of one thread each.

usage: ray_scaling.py MODEL.gguf REC_MODEL ROWS.parquet [--clients 8] [--requests 32] [--tokens 32]      (pip install "ray[serve]" pandas pyarrow)
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import sys
import time
import urllib.request

import ray
from ray import serve

from common import machine

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "python" / "examples"
PORT = 8918


def answer(tokens):
    """Generated tokens of one request."""
    body = {"messages": [{"role": "user", "content": "Write a long story about a fox."}], "max_tokens": tokens}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.loads(reply.read())["usage"]["completion_tokens"]


def served(args, workers):
    """Tokens per second of all clients."""
    import ray_serve

    scale = {"min_replicas": workers, "max_replicas": workers}
    serve.run(ray_serve.ChatCompletions.options(autoscaling_config=scale).bind(str(args.model)))
    with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
        list(pool.map(answer, [4] * args.clients))
        start = time.perf_counter()
        tokens = sum(pool.map(answer, [args.tokens] * args.requests))
        seconds = time.perf_counter() - start
    serve.delete("default")
    return tokens / seconds


def scored(args, workers):
    """Rows per second, the workers' start included in neither."""
    import ray_data_score

    table = ray.data.read_parquet(str(args.rows), override_num_blocks=8 * workers).materialize()
    best = 0.0
    for _ in range(2):
        start = time.perf_counter()
        work = table.map_batches(
            ray_data_score.Score, fn_constructor_args=(str(args.recommender),), concurrency=workers, num_cpus=1, batch_format="pandas", batch_size=8192
        )
        rows = work.materialize().count()
        best = max(best, rows / (time.perf_counter() - start))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("recommender", type=pathlib.Path)
    parser.add_argument("rows", type=pathlib.Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    args.model, args.recommender, args.rows = args.model.resolve(), args.recommender.resolve(), args.rows.resolve()
    sys.path.insert(0, str(EXAMPLES))
    paths = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths, "SCRIMP_NUM_THREADS": "1"}})
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    print(machine(), f"ray {ray.__version__}", flush=True)
    for name, measure, unit in (("serve", served, "tokens/s"), ("data", scored, "rows/s")):
        one, two = measure(args, 1), measure(args, 2)
        print(f"{name}: 1 worker {one:.0f} {unit}, 2 workers {two:.0f}: {two / one:.2f}x", flush=True)


if __name__ == "__main__":
    main()
