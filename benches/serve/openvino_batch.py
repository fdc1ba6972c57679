"""OpenVINO GenAI's continuous batching: N prompts of 400 characters at once. usage: openvino_batch.py MODEL.gguf N NEW_TOKENS"""
import json
import pathlib
import sys
import time

import openvino_genai as genai

path, n, new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
scheduler = genai.SchedulerConfig()
scheduler.cache_size, scheduler.max_num_batched_tokens, scheduler.max_num_seqs = 2, 2048, 64
scheduler.enable_prefix_caching = False
pipeline = genai.LLMPipeline(path, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=2)
text = (pathlib.Path(__file__).parents[2] / "crates/scrimp-llm/assets/alice.txt").read_text()
prompts = [text[2000 + 400 * i:2400 + 400 * i] for i in range(n)]
config = genai.GenerationConfig()
config.max_new_tokens, config.ignore_eos, config.do_sample, config.apply_chat_template = new, True, False, False
times = []
for _ in range(2):
    start = time.perf_counter()
    pipeline.generate(prompts, config)
    times.append(time.perf_counter() - start)
print(json.dumps({"peer": "openvino-genai", "total_tok_s": round(n * new / min(times), 1)}))
