"""What the golden-file generators share: deterministic weights, a byte-level tokenizer, and the expected outputs."""

import json
import pathlib

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TESTDATA = pathlib.Path(__file__).resolve().parents[1]
TINY = TESTDATA / "tiny"

PROMPT_TOKENS = 40
GREEDY_TOKENS = 16
FULL_ROWS = 3
"""The last positions whose logits are kept whole; of the others only the five largest are."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TRAINING_TEXT = (
    "The rain in the hills fills the river, and the river turns the mill. "
    "A small model reads a small text; it learns nothing and says it with confidence. "
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(i, add(i, i))\n"
)


def randomize(model, seed, gain=1.4):
    """Overwrites every parameter with seeded noise whose scale gives logits that are far from flat.

    Matrices get a standard deviation of gain / sqrt(columns), norms vary by a third around their neutral value
    (0 for Gemma 2 and 3 and Qwen3.5, whose norms multiply by 1 + w), biases by a half. Decays of linear attention are between slow and fast.
    """
    generator = torch.Generator().manual_seed(seed)
    gemma = model.config.model_type.startswith("gemma")
    gemma4 = model.config.model_type.startswith(("gemma3n", "gemma4"))
    plus_one = gemma and not gemma4 or model.config.model_type.startswith(("qwen3_5", "qwen3_next"))
    neutral = 0.0 if plus_one else 1.0
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if "embed_tokens_per_layer" in name:
                weight.copy_(noise * 0.3)
            elif name.endswith("router.scale"):
                # The model divides by sqrt(hidden).
                weight.copy_(weight.shape[0] ** 0.5 * (1.0 + 0.3 * noise))
            elif name.endswith("altup.router_norm.weight"):
                # The model divides by hidden.
                weight.copy_(weight.shape[0] ** 0.5 * (1.0 + 0.3 * noise))
            elif name.endswith(("per_expert_scale", "correct_output_scale")):
                weight.copy_(1.0 + 0.3 * noise)
            elif gemma4 and name.endswith("q_norm.weight"):
                # Scores have no other factor.
                weight.copy_((1.0 + 0.3 * noise) * weight.shape[0] ** -0.5)
            elif weight.dim() == 2 and "embed_tokens" in name:
                # Tied, it is the output projection too; Gemma multiplies it by sqrt(hidden) on the way in.
                scale = 0.4 * weight.shape[1] ** -0.5 if gemma else 0.5
                weight.copy_(noise * scale)
            elif weight.dim() == 2:
                out = 2.0 if "lm_head" in name else 1.0
                weight.copy_(noise * gain * out * weight.shape[1] ** -0.5)
            elif "conv1d" in name or name.endswith("conv.conv.weight"):
                weight.copy_(noise * 0.7)
            elif name.endswith("A_log"):
                weight.copy_(noise - 2.0)
            elif name.endswith("linear_attn.norm.weight"):
                weight.copy_(1.0 + 0.3 * noise)
            elif weight.dim() == 3:
                # The matrices of all experts.
                weight.copy_(noise * gain * weight.shape[2] ** -0.5)
            elif "norm" in name:
                # Gemma's small embeddings would leave the logits flat: a larger last norm makes up for it.
                last = 5.0 if name == "model.norm.weight" and gemma else 0.0
                weight.copy_(neutral + last + 0.3 * noise)
            else:
                weight.copy_(0.5 * noise)
        for name, scalar in sorted(model.named_buffers()):
            if name.endswith("layer_scalar"):
                scalar.copy_(0.8 + 0.2 * torch.rand(scalar.shape, generator=generator))
            elif name.endswith(("expert_bias", "e_score_correction_bias")):
                # Biases of the choice of experts, whose scores are between 0 and 1.
                scalar.copy_(0.3 * torch.randn(scalar.shape, generator=generator))


def make_tokenizer(vocab_size):
    """A byte-level BPE tokenizer with exactly `vocab_size` entries: three special ones, 256 bytes, a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|bos|>", "<|eos|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
    assert tokenizer.get_vocab_size() == vocab_size, tokenizer.get_vocab_size()
    return tokenizer


def save_tokenizer(tokenizer, folder, chat_template):
    """Writes tokenizer.json and the tokenizer_config.json that goes with it."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 128,
    }
    if chat_template:
        config["chat_template"] = CHAT_TEMPLATE
    write_json(folder / "tokenizer_config.json", config)


def write_json(path, value):
    """JSON with a line break at the end, keys in the order given."""
    path.write_text(json.dumps(value, indent=1 if not compact(value) else None, separators=(",", ":")) + "\n")


def compact(value):
    """Long lists of numbers would take a line each: no indentation then."""
    return isinstance(value, dict) and any(isinstance(v, list) and len(v) > 20 for v in value.values())


def six(values):
    """Six significant digits, as floats whose text is short."""
    return [float(f"{v:.6g}") for v in values]


def prompt_ids(vocab_size, seed, tokens=PROMPT_TOKENS):
    """Seeded random token ids, none of them special."""
    return np.random.default_rng(seed).integers(3, vocab_size, tokens).tolist()


@torch.no_grad()
def expect(model, ids):
    """Logits after each token of `ids` and the greedy continuation, every step computed without a cache."""
    logits = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    assert torch.isfinite(logits).all()
    top = torch.topk(logits, 5)
    sequence, gaps = list(ids), []
    for _ in range(GREEDY_TOKENS):
        row = model(torch.tensor([sequence]), use_cache=False).logits[0, -1].float()
        two = torch.topk(row, 2)
        gaps.append((two.values[0] - two.values[1]).item())
        sequence.append(two.indices[0].item())
    split = len(ids) - FULL_ROWS
    return {
        "ids": ids,
        "logits_std": float(f"{logits.std().item():.4g}"),
        "top5_ids": top.indices[:split].tolist(),
        "top5_logits": [six(row) for row in top.values[:split].tolist()],
        "last_logits": [six(row) for row in logits[split:].tolist()],
        "greedy_ids": sequence[len(ids):],
        "greedy_min_gap": float(f"{min(gaps):.4g}"),
    }


def choose_prompt(model, vocab_size, first_seed, tokens=PROMPT_TOKENS):
    """The expectation of the first random prompt whose greedy continuation never hangs on a near tie."""
    for seed in range(first_seed, first_seed + 200):
        expected = expect(model, prompt_ids(vocab_size, seed, tokens))
        if expected["greedy_min_gap"] > 0.05 and len(set(expected["greedy_ids"])) > 4:
            return expected
    raise SystemExit("no prompt without near ties found: change the weights' scale")
