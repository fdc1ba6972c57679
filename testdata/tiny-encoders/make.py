"""Writes testdata/tiny-encoders/: tiny random encoders with the embeddings and scores that PyTorch computes.

usage: python3 testdata/tiny-encoders/make.py [FOLDER]     (torch, transformers, tokenizers)

Folders as Hugging Face stores them: `bert`, `roberta`, `nomic`, `gemma` (bidirectional, with dense layers) and `qwen3` (last
token) have the modules of sentence-transformers, `reranker` is a cross-encoder. `expected.json` has the embedding of each text (states of transformers, pooled here) or the logit of each pair. With FOLDER, writes only the embeddings that
sentence-transformers computes with the real encoder there to `FOLDER/expected.json`.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from safetensors.numpy import save_file
from transformers import (BertConfig, BertForSequenceClassification, BertModel, Gemma3TextConfig, Gemma3TextModel,
                          NomicBertConfig, NomicBertModel, Qwen3Config, Qwen3Model, RobertaConfig, RobertaModel)

OUT = pathlib.Path(__file__).resolve().parent
TEXTS = ["a cat", "The quick brown fox jumps over the lazy dog.", "Café Ünïcode, twice: 42!", "x " * 60, "雪 is snow"]
PAIRS = [["a cat", "the dog"], ["fox", "The quick brown fox jumps over the lazy dog. " * 3], ["x", "y"]]
WORDS = ["the", "quick", "brown", "fox", "jump", "##s", "over", "lazy", "dog", "cat", "cafe", "un", "##ic", "##ode", "twice",
         "is", "snow", "雪", ".", ",", ":", "!", *"abcdefghijklmnopqrstuvwxyz0123456789",
         *[f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"]]


def tokenizer(roberta):
    special = ["<s>", "<pad>", "</s>", "<unk>"] if roberta else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    unknown = "<unk>" if roberta else "[UNK]"
    vocab = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unknown))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, last = ("<s>", "</s>") if roberta else ("[CLS]", "[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, vocab[first]), (last, vocab[last])])
    return tokenizer


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name and weight.dim() == 1 and not name.endswith("bias"):
                weight.copy_(("gemma" not in model.config.model_type) + 0.2 * noise)
            else:
                weight.copy_((0.5 if "embeddings" in name else 0.25) * noise)
    return model.eval()


def save(name, model, tokenizer, modules=None):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save(str(folder / "tokenizer.json"))
    for path, content in (modules or {}).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(content))
    return folder


def sentence_modules(mode, normalize=True):
    names = ["Transformer", "Pooling"] + (["Normalize"] if normalize else [])
    modules = [{"idx": i, "name": str(i), "path": f"{i}_{n}" if i else "", "type": f"sentence_transformers.models.{n}"}
               for i, n in enumerate(names)]
    return {"modules.json": modules, "1_Pooling/config.json": {mode: True},
            "sentence_bert_config.json": {"max_seq_length": 48},
            "config_sentence_transformers.json": {"prompts": {"query": "cat : "}, "default_prompt_name": None}}


def encode(tokenizer, text, most=48):
    tokenizer.enable_truncation(most)
    return tokenizer.encode(text) if isinstance(text, str) else tokenizer.encode(*text)


def expected(model, tokenizer, pool, normalize=True):
    rows = []
    for text in TEXTS + ["cat : " + TEXTS[0]]:
        encoding = encode(tokenizer, text)
        with torch.no_grad():
            states = model(input_ids=torch.tensor([encoding.ids])).last_hidden_state[0].numpy()
        vector = pool(states)
        rows.append((vector / np.linalg.norm(vector) if normalize else vector).tolist())
    return {"texts": TEXTS, "embeddings": rows[:-1], "query": rows[-1],
            "tokens": [len(encode(tokenizer, text).ids) for text in TEXTS]}


def write(folder, content):
    rounded = json.loads(json.dumps(content), parse_float=lambda x: float(f"{float(x):.6g}"))
    (folder / "expected.json").write_text(json.dumps(rounded) + "\n")


def main():
    vocab = 4 + len(WORDS)
    sizes = dict(vocab_size=vocab, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    first, mean = (lambda states: states[0]), (lambda states: states.mean(0))

    wordpiece = tokenizer(False)
    model = randomize(BertModel(BertConfig(**sizes, max_position_embeddings=64, hidden_act="gelu"), add_pooling_layer=False), 1)
    folder = save("bert", model, wordpiece, sentence_modules("pooling_mode_mean_tokens"))
    write(folder, expected(model, wordpiece, mean))

    roberta = tokenizer(True)
    config = RobertaConfig(**sizes, max_position_embeddings=64, type_vocab_size=1, pad_token_id=1)
    model = randomize(RobertaModel(config, add_pooling_layer=False), 2)
    folder = save("roberta", model, roberta, sentence_modules("pooling_mode_cls_token", normalize=False))
    write(folder, expected(model, roberta, first, normalize=False))

    model = randomize(NomicBertModel(NomicBertConfig(**sizes, max_position_embeddings=64)), 3)
    folder = save("nomic", model, wordpiece, sentence_modules("pooling_mode_mean_tokens"))
    write(folder, expected(model, wordpiece, mean))

    decoder = dict(vocab_size=vocab, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
                   head_dim=16, intermediate_size=48, max_position_embeddings=64)
    config = Gemma3TextConfig(**decoder, sliding_window=10, use_bidirectional_attention=True, query_pre_attn_scalar=16,
                              layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    model = randomize(Gemma3TextModel(config), 5)
    modules = sentence_modules("pooling_mode_mean_tokens")
    rng = np.random.default_rng(6)
    dense = [rng.normal(0, 0.2, shape).astype(np.float32) for shape in ((48, 32), (24, 48))]
    modules["modules.json"][2:2] = [{"path": f"{i + 2}_Dense", "type": "sentence_transformers.models.Dense"} for i in range(2)]
    for i in range(2):
        modules[f"{i + 2}_Dense/config.json"] = {"activation_function": "torch.nn.modules.linear.Identity"}
    folder = save("gemma", model, wordpiece, modules)
    for i, matrix in enumerate(dense):
        save_file({"linear.weight": matrix}, folder / f"{i + 2}_Dense/model.safetensors")
    write(folder, expected(model, wordpiece, lambda states: dense[1] @ (dense[0] @ states.mean(0))))

    model = randomize(Qwen3Model(Qwen3Config(**decoder, tie_word_embeddings=False)), 7)
    folder = save("qwen3", model, wordpiece, sentence_modules("pooling_mode_lasttoken"))
    write(folder, expected(model, wordpiece, lambda states: states[-1]))

    config = BertConfig(**sizes, max_position_embeddings=64, num_labels=1)
    model = randomize(BertForSequenceClassification(config), 4)
    folder = save("reranker", model, wordpiece)
    logits = []
    for pair in PAIRS:
        encoding = encode(wordpiece, pair, 64)
        with torch.no_grad():
            ids, types = torch.tensor([encoding.ids]), torch.tensor([encoding.type_ids])
            logits.append(model(input_ids=ids, token_type_ids=types).logits[0, 0].item())
    write(folder, {"pairs": PAIRS, "logits": logits})
    for folder in ("bert", "roberta", "nomic", "gemma", "qwen3", "reranker"):
        print(folder, sum(f.stat().st_size for f in (OUT / folder).rglob("*") if f.is_file()), "bytes")


def real(folder):
    from sentence_transformers import SentenceTransformer

    texts = [*TEXTS, "Die Bank erhöht die Zinsen um 0,25 %.", "def add(a, b):\n    return a + b", "word " * 400]
    vectors = SentenceTransformer(str(folder), device="cpu").encode(texts)
    write(folder, {"texts": texts, "embeddings": vectors.tolist()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    real(pathlib.Path(sys.argv[1])) if len(sys.argv) > 1 else main()
