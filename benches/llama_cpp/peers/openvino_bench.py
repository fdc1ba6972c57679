"""One measurement of OpenVINO GenAI on a GGUF file; prints one JSON object.

usage: openvino_bench.py MODEL THREADS TOKENS TEXT    prefill of about TOKENS tokens of TEXT, then 64 greedy ones, best of 3
"""

import json
import pathlib
import sys

import openvino_genai as ov


def main():
    model, threads, wanted, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4])
    scheduler = ov.SchedulerConfig()
    scheduler.cache_size = 2  # GB
    scheduler.max_num_batched_tokens = 8192
    scheduler.enable_prefix_caching = False
    pipe = ov.LLMPipeline(model, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads)
    text = path.read_text(encoding="utf-8-sig")
    low, high = 1, len(text)
    while low < high:  # the shortest prefix with enough tokens
        middle = (low + high) // 2
        enough = pipe.get_tokenizer().encode(text[:middle]).input_ids.shape[1] >= wanted
        low, high = (low, middle) if enough else (middle + 1, high)
    config = ov.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample, config.apply_chat_template = 65, True, False, False
    first, per_token = [], []
    for _ in range(3):
        metrics = pipe.generate([text[:low]], config).perf_metrics
        first.append(metrics.get_ttft().mean)
        per_token.append(metrics.get_tpot().mean)
    tokens = metrics.get_num_input_tokens()
    print(json.dumps({"version": ov.__version__, "prompt_tokens": tokens, "prefill_tok_s": 1000 * tokens / min(first),
                      "decode_tok_s": 1000 / min(per_token)}))


if __name__ == "__main__":
    main()
