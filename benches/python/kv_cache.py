"""Bytes of the cache after a prompt, time of reading it and of decoding behind it: CompressedCache against transformers' DynamicCache.

usage: kv_cache.py [--prompt 4096] [--batch 1] [--decode 16] [--layers 2] [--hidden 2048] [--budget 0.25] [--device cpu]

A random Llama of 1B shape with few layers: caches do not depend on weights. On a GPU, ``--device cuda --layers 32 --hidden 4096`` is the shape of an 8B
model. Prompts that have been read are decoded from by all sequences together. "compressing" is the time that scores, KVCrush's choice and copying take, of the whole.
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
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--decode", type=int, default=16)
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
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(args.device):
        model = transformers.LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    model.set_attn_implementation("scrimp")
    x = torch.randint(0, 1000, (args.batch, args.prompt), device=args.device)
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
    new = x[:, -1:]

    def measure(cache):
        """Seconds of the prompt and of decoding one token."""
        times = []
        for tokens, repeat in ((x, 1), (new, 1), (new, args.decode)):
            synchronise(args.device)
            start = time.perf_counter()
            for _ in range(repeat):
                model(tokens, past_key_values=cache, logits_to_keep=1)
            synchronise(args.device)
            times.append((time.perf_counter() - start) / repeat)
        return times[0], times[2]

    with torch.inference_mode(), realtime():
        measure(transformers.DynamicCache())
        full = transformers.DynamicCache()
        prompt, step = measure(full)
        bytes_full = sum(t.numel() * t.element_size() for layer in full.layers for t in (layer.keys, layer.values))
        print(f"DynamicCache: {bytes_full / 1e6:.1f} MB, prompt {prompt:.2f} s, {args.batch / step:.1f} tokens/s", flush=True)
        del full
        for kvcrush, queries, format in ((0.0, 512, "model"), (0.75, 512, "model"), (0.75, 128, "model"), (0.75, 512, "int8")):
            for _ in range(2):
                spent, cache = 0.0, CompressedCache(policy="snapkv", budget=args.budget, kvcrush=kvcrush, format=format, queries=queries)
                seconds, each = measure(cache)
            print(
                f"CompressedCache({args.budget}, {format}, kvcrush={kvcrush}, queries={queries}): {cache.nbytes / 1e6:.1f} MB, "
                f"{cache.nbytes / bytes_full:.3f}x; prompt {seconds:.3f} s, of which compressing {1e3 * spent:.1f} ms: {100 * spent / seconds:.1f}%, "
                f"{100 * spent / (seconds + args.decode * each):.2f}% of prompt and {args.decode} tokens; {args.batch / each:.1f} tokens/s, {step / each:.2f}x",
                flush=True,
            )


def synchronise(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
