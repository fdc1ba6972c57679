"""Prunes a transformers model, packs it, saves it and loads it again: bf16, int8 and int4 side by side.

usage: compress_llama.py [--model DIR] [--sparsity 0.5]      (without a model: a small random one)
"""

import argparse
import pathlib
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file

import scrimp.torch


def load(path):
    """The model, or a random one."""
    if path:
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--sparsity", type=float, default=0.5)
    args = parser.parse_args()
    dense = load(args.model)
    calibration = [torch.randint(0, dense.config.vocab_size, (1, 128)) for _ in range(8)]  # use text of yours
    x = calibration[0][:, :32]
    with torch.no_grad():
        want = dense(x).logits.float().log_softmax(-1)
    for format in ("bf16", "int8", "int4"):
        model = scrimp.torch.compress(load(args.model), args.sparsity, method="wanda", format=format, calibration=calibration)
        with torch.no_grad():
            got = model(x).logits.float().log_softmax(-1)
        kl = torch.nn.functional.kl_div(got, want, log_target=True, reduction="none").sum(-1).mean()
        print(f"{format}: {scrimp.torch.summary(model)}; KL to the dense model {kl:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)
        fresh = load(args.model)
        scrimp.torch.load_compressed(fresh, load_file(path))
        with torch.no_grad():
            assert torch.equal(fresh(x).logits, model(x).logits)
        print(f"saved and loaded again: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
