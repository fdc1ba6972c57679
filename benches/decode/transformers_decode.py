"""Decode speed of a randomly initialized Llama in transformers (bf16, eager). usage: transformers_decode.py SHAPE THREADS

One line of JSON: the median of the times of 24 steps after a prompt of 64 tokens, greedy, with its own KV cache. A random
initialization is as fast as a trained one. SHAPE: llama-3.2-1b or llama-3-8b.
"""
import json
import statistics
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "llama-3.2-1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
                         num_key_value_heads=8, head_dim=64, vocab_size=128256, tie_word_embeddings=True),
    "llama-3-8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                       num_key_value_heads=8, head_dim=128, vocab_size=128256, tie_word_embeddings=False),
}

torch.set_num_threads(int(sys.argv[2]))
torch.set_default_dtype(torch.bfloat16)
with torch.inference_mode():
    model = LlamaForCausalLM(LlamaConfig(**SHAPES[sys.argv[1]], max_position_embeddings=4096)).eval()
    out = model(torch.arange(64)[None], use_cache=True)
    times = []
    for _ in range(24):
        token = out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        times.append(time.perf_counter() - start)
print(json.dumps({"engine": "transformers", "format": "bf16", "torch": torch.__version__,
                  "decode_tok_s": 1 / statistics.median(times)}))
