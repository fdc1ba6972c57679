"""Bytes of the cache after a prompt, time of reading it and of decoding behind it: CompressedCache against transformers' DynamicCache.

usage: kv_cache.py [--prompt 4096] [--batch 1] [--decode 16] [--layers 2] [--hidden 2048] [--head-dim 64] [--budget 0.25] [--rounds 3] [--device cpu]

A random Llama of 1B shape with few layers: caches do not depend on weights. On a GPU, ``--device cuda --layers 32 --hidden 4096 --head-dim 128`` is the
shape of Llama 3 8B. Prompts that have been read are decoded from by all sequences together. All caches take turns; times are medians of the rounds.
"compressing" is the time that scores, the choice and copying take (on a GPU: of its stream); KVCrush's part is what it adds to that of the same policy
without.
"""

import argparse
import functools
import statistics
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
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(2)
    print(machine())
    model = random_llama(args)
    x = torch.randint(0, 1000, (args.batch, args.prompt), device=args.device)
    clock = Clock(args.device)
    plain = CompressedLayer.after_attention
    CompressedLayer.after_attention = lambda layer, *more: clock.around(lambda: plain(layer, *more))

    def measure(make):
        """Seconds of the prompt, of compressing in it, and of decoding one token; bytes of the cache."""
        cache = make()
        clock.spans.clear()

        def read(tokens, repeat):
            synchronize(args.device)
            start = time.perf_counter()
            for _ in range(repeat):
                model(tokens, past_key_values=cache, logits_to_keep=1)
            synchronize(args.device)
            return (time.perf_counter() - start) / repeat

        prompt = read(x, 1)
        compressing = clock.seconds()
        read(x[:, -1:], 1)
        return prompt, compressing, read(x[:, -1:], args.decode), nbytes(cache)

    # By representatives' share, queries that say what attention tokens get, and format.
    caches = {None: transformers.DynamicCache}
    for kvcrush, queries, format in ((0.0, 512, "model"), (0.75, 512, "model"), (0.75, 128, "model"), (0.0, 512, "int8"), (0.75, 512, "int8")):
        more = dict(policy="snapkv", budget=args.budget, kvcrush=kvcrush, format=format, queries=queries)
        caches[kvcrush, queries, format] = functools.partial(CompressedCache, **more)
    with torch.inference_mode(), realtime():
        for make in caches.values():
            measure(make)
        rounds = [{key: measure(make) for key, make in caches.items()} for _ in range(args.rounds)]
    medians = {key: [statistics.median(part) for part in zip(*(r[key] for r in rounds))] for key in caches}
    full_prompt, _, full_step, full_bytes = medians[None]
    for key, (prompt, compressing, step, size) in medians.items():
        total = prompt + args.decode * step
        line = f"{size / 1e6:.1f} MB, {size / full_bytes:.3f}x; prompt {prompt:.3f} s, {prompt / full_prompt:.2f}x; "
        line += f"{args.batch / step:.1f} tokens/s, {full_step / step:.2f}x"
        if key is None:
            print(f"DynamicCache: {line}")
            continue
        kvcrush, queries, format = key
        line += f"; compressing {1e3 * compressing:.1f} ms, {100 * compressing / total:.2f}% of prompt and {args.decode} tokens"
        if kvcrush > 0:
            _, without, _, _ = medians[0.0, 512, format]
            line += f", KVCrush's part {100 * (compressing - without) / total:.2f}%"
        print(f"{format}, kvcrush={kvcrush}, queries={queries}: {line}")


def random_llama(args):
    heads = args.hidden // args.head_dim
    config = transformers.LlamaConfig(
        hidden_size=args.hidden, intermediate_size=args.hidden * 7 // 2, num_hidden_layers=args.layers, num_attention_heads=heads,
        num_key_value_heads=heads // 4, head_dim=args.head_dim, vocab_size=1000, max_position_embeddings=1 << 17, dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(args.device):
        model = transformers.LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    model.set_attn_implementation("scrimp")
    return model


def nbytes(cache):
    if isinstance(cache, CompressedCache):
        return cache.nbytes
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


class Clock:
    """The time of calls; on a GPU that of its stream, without waiting for it."""

    def __init__(self, device):
        self.on_gpu, self.spans = device.startswith("cuda"), []

    def around(self, call):
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            self.spans.append(time.perf_counter() - start)
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        self.spans.append((start, end))

    def seconds(self):
        """Of all calls; once the GPU is done."""
        return sum(start.elapsed_time(end) / 1e3 for start, end in self.spans) if self.on_gpu else sum(self.spans)


def synchronize(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
