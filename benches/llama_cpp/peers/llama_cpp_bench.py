"""One measurement of llama.cpp through llama-cpp-python; prints one JSON object.

usage: llama_cpp_bench.py speed MODEL THREADS DEPTH TEXT    prefill of 512 and decode of 64 tokens at DEPTH, best of 3
       llama_cpp_bench.py memory MODEL THREADS TEXT         peak RSS with a context of 8192 tokens
       llama_cpp_bench.py first MODEL THREADS PROMPT        from here to the first token, and of that without imports
"""

import json
import pathlib
import sys
import time

START = time.perf_counter()
import llama_cpp  # noqa: E402  (its import belongs to what is measured)
from llama_cpp import Llama  # noqa: E402

IMPORTED = time.perf_counter()
CONTEXT, PREFILL, DECODE = 8192, 512, 64


def peak_mib():
    # Not getrusage: its maximum starts from what the parent process held when it forked.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def load(model, threads):
    return Llama(model, n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, n_batch=PREFILL, verbose=False)


def token_ids(llm, path, needed):
    with open(path, "rb") as file:
        ids = llm.tokenize(file.read())
    return [ids[i % len(ids)] for i in range(needed)]


def speed(model, threads, depth, text):
    llm = load(model, threads)
    ids = token_ids(llm, text, max(PREFILL, depth) + DECODE)

    def timed(action):
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    def prefill(count):
        llm.reset()
        llm.eval(ids[:count])

    def decode():
        for i in range(DECODE):
            llm.eval([ids[depth + i]])

    prefill(64)
    fastest_prefill = min(timed(lambda: prefill(PREFILL)) for _ in range(3))
    prefill(depth)
    fastest_decode = float("inf")
    for _ in range(3):
        llm.n_tokens = depth  # the next eval forgets what lies behind
        fastest_decode = min(fastest_decode, timed(decode))
    return {"prefill_tok_s": PREFILL / fastest_prefill, "decode_tok_s": DECODE / fastest_decode, "depth": depth}


def memory(model, threads, text):
    interpreter = peak_mib()
    llm = load(model, threads)
    llm.eval(token_ids(llm, text, PREFILL))
    llm.eval(token_ids(llm, text, 1))
    return {"peak_rss_mib": peak_mib(), "interpreter_mib": interpreter}


def first(model, threads, prompt):
    llm = Llama(model, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    llm.eval(llm.tokenize(prompt.encode()))
    token = llm.sample(temp=0.0)
    sys.stderr.buffer.write(llm.detokenize([token]))
    end = time.perf_counter()
    return {"first_token_s": end - IMPORTED, "with_imports_s": end - START}


def main():
    kind, model, threads, *rest = sys.argv[1:]
    threads = int(threads)
    if kind == "speed":
        result = speed(model, threads, int(rest[0]), rest[1])
    else:
        result = {"memory": memory, "first": first}[kind](model, threads, *rest)
    print(json.dumps({"version": llama_cpp.__version__, **result}))


if __name__ == "__main__":
    main()
