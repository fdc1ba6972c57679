"""kvpress's presses with and without KVCrush: what the continuation of a text loses when a part of its prompt's cache is kept.

usage: kvpress_table.py MODEL.gguf TEXT [TEXT ...] [--prompt 2048] [--continuation 256] [--ratios 0.5,0.75]

Needs kvpress (pip install kvpress; it wants transformers below 5.3) and gguf. For each text one window of its middle is taken: the prompt is read under the
press, the rest is scored behind the compressed cache. Printed is the mean KL divergence of the predictions from those behind the whole cache, nats per
token, over all texts.
"""

import argparse
import pathlib

import kvpress
import torch
import transformers

from common import machine
from scrimp.kv import KVCrushPress

PRESSES = ["RandomPress", "StreamingLLMPress", "KnormPress", "KeyDiffPress", "TOVAPress", "SnapKVPress", "ExpectedAttentionPress"]


def predictions(model, prompt, rest, press):
    """Log-probabilities of the tokens behind the prompt, ``[rest, vocab]``."""
    cache = transformers.DynamicCache()
    if press is None:
        model(prompt, past_key_values=cache, logits_to_keep=1)
    else:
        with press(model):
            model(prompt, past_key_values=cache, logits_to_keep=1)
    n = prompt.shape[1]
    positions = torch.arange(n, n + rest.shape[1]).unsqueeze(0)
    return model(rest, past_key_values=cache, position_ids=positions).logits[0].float().log_softmax(-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("texts", nargs="+", type=pathlib.Path)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--continuation", type=int, default=256)
    parser.add_argument("--ratios", default="0.5,0.75", help="shares of the prompt that go")
    args = parser.parse_args()
    print(machine(), f"transformers {transformers.__version__}", flush=True)
    where = dict(gguf_file=args.model.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model.parent, **where)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model.parent, **where, dtype=torch.float32).eval()
    model.set_attn_implementation("scrimp")
    windows = []
    for path in args.texts:
        ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt").input_ids
        first = max(0, ids.shape[1] // 2 - args.prompt)
        ids = ids[:, first : first + args.prompt + args.continuation]
        windows.append((ids[:, : args.prompt], ids[:, args.prompt :]))
    ratios = [float(r) for r in args.ratios.split(",")]
    print("| press |" + "".join(f" {1 - r:.0%} kept | with KVCrush |" for r in ratios) + "\n|---|" + "---|---|" * len(ratios))
    with torch.inference_mode():
        whole = [predictions(model, *window, None) for window in windows]
        for name in PRESSES:
            cells = []
            for ratio in ratios:
                for wrap in (lambda press: press, KVCrushPress):
                    press = wrap(getattr(kvpress, name)(compression_ratio=ratio))
                    kl = [
                        (want.exp() * (want - predictions(model, *window, press))).sum(-1).mean().item()
                        for window, want in zip(windows, whole)
                    ]
                    cells.append(f"{sum(kl) / len(kl):.3f}")
            print(f"| {name.removesuffix('Press')} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
