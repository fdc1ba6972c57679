"""Writes testdata/reference/<model>.json: what transformers (fp32, dequantized weights) says about a real GGUF model.

usage: python3 testdata/reference/make.py MODEL.gguf TEXT OUT.json [--max-tokens N]
       python3 testdata/reference/make.py --merge FULL.json OUT.json

The first form computes everything, the perplexity over the first N tokens of TEXT (default 2048) in windows of 512; the
second takes prompts, top-10 logits, greedy continuations and the 8192-token perplexity from a file of the same layout and
keeps what OUT.json already says about the excerpt.
"""

import argparse
import json
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.tiny import write_json

PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time, there was a little girl who",
           "Alice was beginning to get very tired of sitting by her sister on the bank,", "Water boils at"]
WINDOW = 512


def windows(ids, bos, limit):
    """Non-overlapping windows of WINDOW tokens, each starting with BOS if the tokenizer adds one; no partial last one."""
    step = WINDOW - len(bos)
    return [bos + ids[at:at + step] for at in range(0, min(len(ids), limit) - step + 1, step)]


def measure(path, text, limit):
    import torch
    from llama_cpp import Llama
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    tokenizer = Llama(str(path), vocab_only=True, verbose=False)
    bos = [tokenizer.token_bos()] if tokenizer.metadata.get("tokenizer.ggml.add_bos_token") == "true" else []
    ids = tokenizer.tokenize(text.read_bytes(), add_bos=False)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    nll = scored = 0
    prompts = []
    with torch.no_grad():
        for window in windows(ids, bos, limit):
            log_p = torch.log_softmax(model(torch.tensor([window])).logits[0].float(), -1)
            nll -= log_p[:-1].gather(1, torch.tensor(window[1:])[:, None]).sum().item()
            scored += len(window) - 1
        for prompt in PROMPTS:
            prompt_ids = tokenizer.tokenize(prompt.encode(), add_bos=True)
            top = torch.topk(model(torch.tensor([prompt_ids])).logits[0, -1].float(), 10)
            greedy = model.generate(torch.tensor([prompt_ids]), max_new_tokens=40, do_sample=False)[0, len(prompt_ids):]
            prompts.append({"prompt": prompt, "ids": prompt_ids, "top10_ids": top.indices.tolist(),
                            "top10_logits": [round(v, 4) for v in top.values.tolist()],
                            "greedy_ids": greedy.tolist()})
    excerpt = {"text": text.name, "context": WINDOW, "max_tokens": limit, "scored_tokens": scored, "ids": ids[:limit],
               "ppl": round(math.exp(nll / scored), 5)}
    return {"model": path.name, "bos": bos, "excerpt": excerpt, "prompts": prompts}


def merge(full, out):
    known = json.loads(out.read_text()) if out.exists() else {}
    prompts = [{"prompt": p["prompt"], "ids": p["ids"], "top10_ids": p["top10_ids"], "top10_logits": p["top10_logits"],
                "greedy_ids": p["greedy_ids_transformers"]} for p in full["prompts"]]
    whole = {key: full[key] for key in ("text", "context", "max_tokens", "scored_tokens", "first_ids")}
    whole |= {"ppl": round(full["ppl_transformers"], 5), "ppl_llama_cpp": round(full["ppl_llama_cpp"], 5)}
    return {"model": full["model"], "bos": full["bos"], "whole": whole, "excerpt": known.get("excerpt"), "prompts": prompts}


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("paths", nargs="+", type=pathlib.Path)
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--max-tokens", type=int, default=2048)
    args = parser.parse_args()
    if args.merge:
        full, out = args.paths
        write_json(out, merge(json.loads(full.read_text()), out))
    else:
        model, text, out = args.paths
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, measure(model, text, args.max_tokens))


if __name__ == "__main__":
    main()
