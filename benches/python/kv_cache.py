"""Bytes of the cache after a prompt, and time of reading it: CompressedCache against transformers' DynamicCache.

usage: kv_cache.py [--prompt 4096] [--layers 2] [--budget 0.25] [--device cpu]

A random Llama of 1B shape with few layers: caches do not depend on weights. On a GPU, ``--device cuda --layers 32 --hidden 4096`` is the shape of an 8B
model. "compressing" is the time that scores, KVCrush's choice and copying take, of the whole.
"""

import argparse
import time

import torch
import transformers

from common import machine, realtime
from scrimp.kv import CompressedCache
from scrimp.kv._cache import CompressedLayer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(2)
    print(machine())
    config = transformers.LlamaConfig(
        hidden_size=args.hidden, intermediate_size=4 * args.hidden, num_hidden_layers=args.layers, num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 256, vocab_size=1000, max_position_embeddings=1 << 17, dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(args.device, torch.bfloat16).eval()
    model.set_attn_implementation("scrimp")
    x = torch.randint(0, 1000, (1, args.prompt), device=args.device)
    spent = 0.0
    plain = CompressedLayer.after_attention

    def timed(layer, queries, scaling):
        nonlocal spent
        synchronise(args.device)
        start = time.perf_counter()
        plain(layer, queries, scaling)
        synchronise(args.device)
        spent += time.perf_counter() - start

    CompressedLayer.after_attention = timed
    full = transformers.DynamicCache()
    with torch.inference_mode(), realtime():
        start = time.perf_counter()
        model(x, past_key_values=full, logits_to_keep=1)
        synchronise(args.device)
        whole = time.perf_counter() - start
        bytes_full = sum(t.numel() * t.element_size() for layer in full.layers for t in (layer.keys, layer.values))
        print(f"DynamicCache: {bytes_full / 1e6:.1f} MB, prompt {whole:.2f} s")
        for queries in (None, 512, 128):
            for format in ("model", "int8"):
                spent, cache = 0.0, CompressedCache(policy="snapkv", budget=args.budget, kvcrush=0.75, format=format, queries=queries)
                start = time.perf_counter()
                model(x, past_key_values=cache, logits_to_keep=1)
                synchronise(args.device)
                seconds = time.perf_counter() - start
                print(
                    f"CompressedCache({args.budget}, {format}, queries={queries}): {cache.nbytes / 1e6:.1f} MB, {cache.nbytes / bytes_full:.3f}x; "
                    f"prompt {seconds:.2f} s, of which compressing {100 * spent / seconds:.1f}%"
                )


def synchronise(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
