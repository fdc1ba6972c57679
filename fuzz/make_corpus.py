"""Writes the fuzzers' corpus: real headers, cut to a few KiB.

    python make_corpus.py gguf FILE.gguf...        keeps all metadata (long arrays and strings cut) and the tensors outside
                                                   layers 1 and up, each cut to one block
    python make_corpus.py safetensors              saves tiny models with transformers (needs torch)
"""

import pathlib
import struct
import sys
import tempfile

HERE = pathlib.Path(__file__).parent / "corpus"
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 12: (256, 144),
          13: (256, 176), 14: (256, 210), 30: (1, 2)}
ITEMS, TEXT = 12, 160


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, fmt):
        return struct.unpack("<" + fmt, self.take(struct.calcsize(fmt)))[0]

    def string(self):
        return self.take(self.number("Q"))


def text(value):
    value = value[:TEXT].decode(errors="ignore").encode()
    return struct.pack("<Q", len(value)) + value


def value(reader, kind):
    if kind == 8:
        return text(reader.string())
    if kind != 9:
        return reader.take(SIZES[kind])
    item, count = reader.number("I"), reader.number("Q")
    items = [value(reader, item) for _ in range(count)][:ITEMS]
    return struct.pack("<IQ", item, len(items)) + b"".join(items)


def gguf(path):
    with open(path, "rb") as file:
        reader = Reader(file.read(16 << 20))
    magic, version, tensors, pairs = reader.take(4), reader.number("I"), reader.number("Q"), reader.number("Q")
    head = []
    for _ in range(pairs):
        key, kind = reader.string(), reader.number("I")
        head.append(text(key) + struct.pack("<I", kind) + value(reader, kind))
    infos, data = [], b""
    for _ in range(tensors):
        name, dims = reader.string(), reader.number("I")
        reader.take(8 * dims)
        kind, _ = reader.number("I"), reader.number("Q")
        if name.startswith(b"blk.") and not name.startswith(b"blk.0."):
            continue
        columns, size = BLOCKS[kind]
        infos.append(text(name) + struct.pack("<I" + "Q" * dims + "IQ", dims, *[columns, 1][:dims], kind, len(data)))
        data += bytes(size)
        data += bytes(-len(data) % 32)
    out = magic + struct.pack("<IQQ", version, len(infos), len(head)) + b"".join(head) + b"".join(infos)
    out += bytes(-len(out) % 32) + data
    (HERE / "gguf").mkdir(parents=True, exist_ok=True)
    (HERE / "gguf" / pathlib.Path(path).with_suffix("").name).write_bytes(out)


def safetensors():
    import transformers as t

    size = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=1, head_dim=4, pad_token_id=0, tie_word_embeddings=True)
    (HERE / "safetensors").mkdir(parents=True, exist_ok=True)
    for config in [t.LlamaConfig, t.Qwen2Config, t.Gemma3TextConfig, t.Phi3Config]:
        model = t.AutoModelForCausalLM.from_config(config(**size)).bfloat16()
        with tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory)
            data = (pathlib.Path(directory) / "model.safetensors").read_bytes()
        (HERE / "safetensors" / config.model_type).write_bytes(data)


if sys.argv[1] == "gguf":
    for path in sys.argv[2:]:
        gguf(path)
else:
    safetensors()
