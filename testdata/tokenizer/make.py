#!/usr/bin/env python3
"""Makes the golden files of this directory with other people's tokenizers.

    python3 testdata/tokenizer/make.py MODELS_DIR [TEXTS_DIR]

MODELS_DIR holds the GGUF files; their ids come from llama.cpp (`pip install llama-cpp-python`). The two small
tokenizer.json are trained on the excerpt here, and their ids come from Hugging Face (`pip install tokenizers`).
TEXTS_DIR may hold longer texts (alice.txt, tinyshakespeare.txt): of them only a checksum of the ids is kept.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXCERPT = HERE.parent / "text" / "alice_excerpt.txt"
MODELS = [
    "SmolLM2-135M-Instruct.Q4_1",
    "gemma-3-270m-Q4_K_M",
    "qwen2.5-coder-0.5b-instruct-q4_k_m",
    "qwen2.5-coder-1.5b-instruct-q4_k_m",
]

CASES = [
    "",
    " ",
    "a",
    "Hello, world!",
    " leading and trailing ",
    "The capital of France is Paris.",
    # contractions, both cases, both apostrophes
    "I'll we're they've it's I'd I'm don't 'tis o'clock",
    "I'LL WE'RE THEY'VE IT'S I'D I'M DON'T rock'N'roll 's 'S'LL",
    "It\u2019s \u2018curly\u2019 \u201cquotes\u201d \u2014 dash\u2026",
    # numbers
    "0 1 12 123 1234 12345 123456 3.14159 1e-10 0xFF 1,000,000 2024-02-29 50% \u00bd \u2167 \u0661\u0662\u0663 \uff11\uff12",
    "abc123def456 v1.2.3-rc4",
    # white space
    "  two   three    four     five",
    "a\tb\t\tc\t\t\td",
    "\t\tx\n\t\t\ty\n",
    "line\nline\n\nline\n\n\nline\n\n\n\n\n\n\n\n\nend",
    "crlf\r\ncrlf\r\n\r\nend\rcr only\r\r\n\n\r",
    " \n \n  \n\t\n",
    "trailing   \n   leading",
    "\n" * 70,
    " " * 70,
    "\t" * 40,
    " " * 33 + "x" + " " * 34,
    "nbsp\u00a0nbsp\u00a0\u00a0x em\u2003en\u2002thin\u2009zero\u200bword\u2060ideographic\u3000x line\u2028para\u2029nel\u0085x",
    "\ufeffwith a byte order mark",
    # other scripts
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002\u6211\u4eec\u53bb\u516c\u56ed\u6563\u6b65\u5427\u3002",
    "\u5409\u91ce\u5bb6\u3067\ud842\udfb7".encode("utf-16", "surrogatepass").decode("utf-16"),
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8\u3067\u3059\u3002\u30ab\u30bf\u30ab\u30ca\u3001\u3072\u3089\u304c\u306a\u3001\u6f22\u5b57\u3002\uff76\uff9e",
    "\ud55c\uad6d\uc5b4 \ud14c\uc2a4\ud2b8\uc785\ub2c8\ub2e4. \uc548\ub155\ud558\uc138\uc694!",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u0645\u060c \u0643\u064e\u064a\u0652\u0641\u064e \u062d\u0627\u0644\u064f\u0643\u064e\u061f",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e, \u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902 \u092a\u0930\u0940\u0915\u094d\u0937\u093e\u0964",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22\u0e44\u0e21\u0e48\u0e21\u0e35\u0e0a\u0e48\u0e2d\u0e07\u0e27\u0e48\u0e32\u0e07",
    "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0401\u043b\u043a\u0430 \u0437\u0435\u043b\u0451\u043d\u0430\u044f.",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u03ba\u03cc\u03c3\u03bc\u03b5, \u03bf\u03b4\u03cc\u03c2",
    "Stra\u00dfe na\u00efve fa\u00e7ade \u00c5ngstr\u00f6m \u0142\u00f3d\u017a \u0130stanbul \u01c5",
    "cafe\u0301 nai\u0308ve combining a\u0323\u0308\u0301",
    "Vi\u1ec7t Nam \u0111\u1eb9p qu\u00e1; Ti\u1ebfng Vi\u1ec7t",
    "\u1208\u1230\u120b\u121d \u12d3\u1208\u121d; \u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0; \u0562\u0561\u0580\u0565\u0582; \u13a3\u13b3\u13a9",
    # emoji, joined and flagged
    "\U0001f600 smile \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1eb\U0001f1f7\U0001f1ef\U0001f1f5 1\ufe0f\u20e3",
    "\U0001d573\U0001d58a\U0001d591\U0001d591\U0001d594 \U0001f9ec\U0001fae0\U0001fae8",
    # code
    "def f(x: int) -> int:\n    if x > 0:\n        return x ** 2  # square\n\n    return -x\n\n\nprint(f'{f(3)!r}')\n",
    "fn main() {\n\tlet v: Vec<u8> = vec![1, 2, 3];\n\tprintln!(\"{v:?}\");\r\n}\r\n",
    "#include <stdio.h>\nint main(void) {\n    for (int i = 0; i < 10; ++i)\n        printf(\"%d\\n\", i);\n    return 0;\n}\n",
    "SELECT a.id, COUNT(*) AS n FROM t_a a JOIN t_b b ON a.id=b.a_id WHERE b.x<>'y' GROUP BY 1;--end",
    "<html><body class=\"x\"><table><tr><td>1</td></tr></table><p>a &amp; b</p></body></html>",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\\\"b\": \"\\u00e9\"}}",
    "https://example.org/path?q=a%20b&c=d#frag user@example.org C:\\Users\\x /usr/bin/env",
    "camelCase PascalCase snake_case SCREAMING_CASE kebab-case x1y2 __init__ i++ != === => :: ->> <<= ...",
    "!!!???... ---=== ###***///\\\\\\ ((())) [[]] {{}} <><> \"\"'' ``` ~~~ @@ $$ %% ^^ && ||",
    "\u2211\u222b\u2202 \u2260 \u2264 \u221e \u03b1\u03b2\u03b3 \u2192 \u21d2 \u2200x\u2208\u211d \u00b2\u00b3 \u20ac\u00a3\u00a5\u20b9 \u00a9\u00ae\u2122 \u00b0",
    # characters that are none
    "\u0000\u0001\u0002\u001f\u007f\u0080\u009f control",
    "bell\u0007 esc\u001b[31mred\u001b[0m backspace\u0008 form\u000cfeed vertical\u000btab",
    "private \ue000\uf8ff\U0010fffd noncharacter \ufffe\uffff replacement \ufffd\ufffd",
    "\u202eright to left\u202c \u200e\u200f \u00ad soft\u00adhyphen \u034f",
    # marks of the tokenizers themselves
    "\u2581 \u2581\u2581x \u2581the \u0120 \u0120the \u010a \u0109",
    "<0x0A> <0x41><0xE2> <unk> <s> <pad> [UNK] [PAD] <mask>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|endoftext|> <|endoftext|>\n<|im_start|",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n<bos><eos>",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|><|fim_pad|><|repo_name|>r<|file_sep|>f<repo_name><reponame>",
    "<tool_call>\n{\"name\": 1}\n</tool_call> <unused0><unused42>[multimodal]",
    "<|im_start|><|im_start|>x<|im_end|><|<|im_end|>|>",
    # words that are hard to merge
    "a" * 300,
    "ab" * 200,
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaabaaaaacaaaaad" * 9,
    "\u4e00" * 100,
    "\U0001f600" * 50,
    "xX" * 60 + "1" * 60 + "!" * 60 + "=" * 80 + "-" * 80,
]


def fnv1a(ids):
    """FNV-1a, 64 bits, over the ids as little-endian u32."""
    h = 0xCBF29CE484222325
    for i in ids:
        for b in i.to_bytes(4, "little"):
            h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def write(name, value):
    (HERE / name).write_text(json.dumps(value, ensure_ascii=True, indent=None, separators=(",", ":")).replace('{"text"', '\n{"text"') + "\n")


def llama_cpp(models, texts):
    import llama_cpp

    for name in MODELS:
        llm = llama_cpp.Llama(str(models / f"{name}.gguf"), vocab_only=True, verbose=False)

        def ids(text, special):
            return llm.tokenize(text, add_bos=False, special=special)

        cases = []
        for text in CASES:
            case = {"text": text, "ids": ids(text.encode(), True)}
            plain = ids(text.encode(), False)
            if plain != case["ids"]:
                case["plain"] = plain
            cases.append(case)
        sums = {}
        for path in [EXCERPT] + [texts / n for n in ("alice.txt", "tinyshakespeare.txt") if texts]:
            got = ids(path.read_bytes(), True)
            sums[path.name] = {"count": len(got), "fnv1a": fnv1a(got)}
        with_bos = llm.tokenize(b"x", add_bos=True, special=True)
        write(f"{name}.json", {
            "reference": f"llama-cpp-python {llama_cpp.__version__}",
            "vocab_size": llm.n_vocab(),
            "with_bos": with_bos,
            "texts": sums,
            "cases": cases,
        })


def hugging_face():
    import tokenizers
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    byte_level = Tokenizer(models.BPE())
    byte_level.normalizer = normalizers.NFC()
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    byte_level.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    byte_level.decoder = decoders.ByteLevel()
    byte_level.train([str(EXCERPT)], trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))

    sentence = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    sentence.normalizer = normalizers.Sequence([
        normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    sentence.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    sentence.train([str(EXCERPT)], trainers.BpeTrainer(
        vocab_size=700, max_token_length=8,
        special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)], show_progress=False))
    sentence.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    # Bytes are vocabulary, not special tokens.
    state = json.loads(sentence.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    sentence = Tokenizer.from_str(json.dumps(state))

    configs = {
        "tiny_bytelevel": ({"eos_token": "<|im_end|>", "add_bos_token": False, "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"}, byte_level),
        "tiny_sentencepiece": ({"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}}, sentence),
    }
    for name, (config, tokenizer) in configs.items():
        out = HERE / name
        out.mkdir(exist_ok=True)
        (out / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=True, separators=(",", ":")) + "\n")
        (out / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
        cases = []
        for text in CASES:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            cases.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids)})
        write(f"{name}/golden.json", {"reference": f"tokenizers {tokenizers.__version__}", "vocab_size": tokenizer.get_vocab_size(), "cases": cases})
    (HERE / "tiny_bytelevel" / "generation_config.json").write_text('{"eos_token_id": [2, 0]}\n')


if __name__ == "__main__":
    hugging_face()
    if len(sys.argv) > 1:
        llama_cpp(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
