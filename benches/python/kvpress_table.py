"""kvpress's presses with and without KVCrush: what the continuation of a text loses when a part of its prompt's cache is kept.

usage: kvpress_table.py MODEL.gguf TEXT [TEXT ...] [--prompt 2048] [--continuation 256] [--windows 1] [--ratios 0.5,0.75] [--device cpu]

Needs kvpress (pip install kvpress; it wants transformers below 5.3) and gguf. Windows are taken from each text at even distances: the prompt is read under
the press, the rest is scored behind the compressed cache. Printed is the mean KL divergence of the predictions from those behind the whole cache, nats per
token, over all windows, and in how many of them it is lower with KVCrush.
"""

import argparse
import pathlib
import tempfile

import kvpress
import torch
import transformers

from common import machine
from scrimp.kv import KVCrushPress

SCORERS = ["RandomPress", "StreamingLLMPress", "KnormPress", "KeyDiffPress", "TOVAPress", "SnapKVPress", "ExpectedAttentionPress"]
PRESSES = {name.removesuffix("Press"): getattr(kvpress, name) for name in SCORERS} | {
    "AdaKV (SnapKV)": lambda compression_ratio: kvpress.AdaKVPress(kvpress.SnapKVPress(compression_ratio=compression_ratio)),
    "KVzip": kvpress.KVzipPress,
}


def predictions(model, prompt, rest, press):
    """Log-probabilities of the tokens behind the prompt, ``[rest, vocab]``."""
    cache = transformers.DynamicCache()
    if press is None:
        model(prompt, past_key_values=cache, logits_to_keep=1)
    else:
        with press(model):
            model(prompt, past_key_values=cache, logits_to_keep=1)
    n = prompt.shape[1]
    positions = torch.arange(n, n + rest.shape[1], device=rest.device).unsqueeze(0)
    return model(rest, past_key_values=cache, position_ids=positions).logits[0].float().log_softmax(-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("texts", nargs="+", type=pathlib.Path)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--continuation", type=int, default=256)
    parser.add_argument("--windows", type=int, default=1, help="of each text")
    parser.add_argument("--ratios", default="0.5,0.75", help="shares of the prompt that go")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(machine(), f"transformers {transformers.__version__}", flush=True)
    where = dict(gguf_file=args.model.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model.parent, **where)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model.parent, **where, dtype=torch.float32).eval().to(args.device)
    # KVzip reads the tokenizer of the model's name; texts here have no chat's frame around them.
    tokenizer.chat_template = None
    folder = tempfile.TemporaryDirectory()
    tokenizer.save_pretrained(folder.name)
    model.config._name_or_path = folder.name
    windows = []
    for path in args.texts:
        ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt").input_ids.to(args.device)
        length = args.prompt + args.continuation
        for i in range(args.windows):
            first = max(0, ids.shape[1] - length) * (i + 1) // (args.windows + 1)
            window = ids[:, first : first + length]
            windows.append((window[:, : args.prompt], window[:, args.prompt :]))
    ratios = [float(r) for r in args.ratios.split(",")]
    print(f"{len(windows)} windows of {args.prompt} + {args.continuation} tokens", flush=True)
    print("| press |" + "".join(f" {1 - r:.0%} kept | with KVCrush | lower in |" for r in ratios) + "\n|---|" + "---|---|---|" * len(ratios))
    with torch.inference_mode():
        whole = [predictions(model, *window, None) for window in windows]
        for name, make in PRESSES.items():
            cells = []
            for ratio in ratios:
                kl = []
                for attention, wrap in (("sdpa", lambda press: press), ("scrimp", KVCrushPress)):
                    # kvpress hides tokens of single heads in the attention functions that were there before it.
                    model.set_attn_implementation(attention)
                    press = wrap(make(compression_ratio=ratio))
                    kl.append([
                        (want.exp() * (want - predictions(model, *window, press))).sum(-1).mean().item()
                        for window, want in zip(windows, whole)
                    ])
                lower = sum(b < a for a, b in zip(*kl))
                cells += [f"{sum(x) / len(x):.3f}" for x in kl] + [f"{lower} of {len(windows)}"]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
