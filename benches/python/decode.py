"""Decode speed of a transformers Llama of 1B shape, random weights, 50% sparse: stock bf16, torch.compile, compress.

usage: decode.py [--layers 16] [--tokens 24] [--rounds 3] [--compile] [--formats bf16,int8,int4] [--vocab 128256]

Every number is that of ``model.generate``: the time of ``tokens`` + 1 tokens less that of one, so without the prompt.
"""

import argparse
import copy
import gc

import torch
import transformers

from common import machine, realtime, seconds
from scrimp.torch import compress, summary


def llama(layers, vocab):
    """Llama 3.2 1B's shape; weights are random, but cheap to make."""
    config = transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8, vocab_size=vocab,
        max_position_embeddings=4096, tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    block = torch.randn(1 << 20).bfloat16() * 0.02
    for p in model.parameters():
        flat = p.data.view(-1)
        for first in range(0, flat.numel(), block.numel()):
            part = flat[first : first + block.numel()]
            part.copy_(block[: part.numel()])
        if p.dim() == 1:
            p.data.fill_(1.0)
    rotary = model.model.rotary_emb
    fresh = type(rotary)(config)
    model.model.rotary_emb = fresh
    return model.eval()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--formats", default="bf16,int8")
    args = parser.parse_args()
    torch.set_num_threads(2)
    print(machine(), flush=True)
    stock = llama(args.layers, args.vocab)
    models = {"stock bf16": stock}
    if args.compile:
        compiled = copy.copy(stock)
        compiled.forward = torch.compile(stock.forward, dynamic=True)
        models["stock bf16, torch.compile"] = compiled
    for format in args.formats.split(","):
        for skip in (("lm_head",), ()):
            shared = [stock.model.embed_tokens, *([stock.lm_head] if skip else [])]
            model = copy.deepcopy(stock, {id(m): m for m in shared})
            compress(model, 0.5, format=format, skip=skip)
            name = f"compress({format}){'' if skip else ', lm_head too'}"
            models[name] = model
            print(f"{name}: {summary(model)}", flush=True)
            gc.collect()
    x = torch.randint(0, args.vocab, (1, 8))

    def run(model, n):
        model.generate(
            x, attention_mask=torch.ones_like(x), max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0, eos_token_id=None
        )

    best = {name: float("inf") for name in models}
    for model in models.values():
        run(model, 3)
    for _ in range(args.rounds):
        for name, model in models.items():
            with realtime():
                one = seconds(lambda: run(model, 1))
                many = seconds(lambda: run(model, args.tokens + 1))
            best[name] = min(best[name], (many - one) / args.tokens)
    for name, t in best.items():
        print(f"{name:28} {1 / t:6.2f} tok/s   {best['stock bf16'] / t:.2f}x of stock")


if __name__ == "__main__":
    main()
