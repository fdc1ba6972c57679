"""The command's contract: every verb's --json fields, options, streams and exit statuses."""

import json
import math
import struct

import pytest

from conftest import TEXT, TINY, TINY_GGUF, read_safetensors, scrimp, write_safetensors

LLAMA = TINY / "llama"
GGUF = TINY_GGUF / "llama-mixed.gguf"
GREEDY = ["--raw", "--temperature", "0"]


def one(ran):
    """The only JSON object of a run."""
    objects = ran.json()
    assert len(objects) == 1, objects
    return objects[0]


def check_fields(result, **fields):
    """Every field is there, has the type, and (numbers) is finite and not negative."""
    for name, kind in fields.items():
        assert name in result, f"{name} is not in {sorted(result)}"
        value = result[name]
        if kind is float:
            assert isinstance(value, int | float) and not isinstance(value, bool), (name, value)
            assert math.isfinite(value) and value >= 0, (name, value)
        elif kind is int:
            assert isinstance(value, int) and not isinstance(value, bool) and value >= 0, (name, value)
        else:
            assert isinstance(value, kind), (name, value)


@pytest.mark.parametrize("model", [LLAMA, GGUF], ids=["directory", "gguf"])
def test_run_json(model):
    result = one(scrimp("run", model, "a small text", "--max-tokens", 9, *GREEDY, "--json"))
    check_fields(result, text=str, prompt_tokens=int, generated_tokens=int, prefill_tok_s=float, decode_tok_s=float,
                 kv_bytes=int, kv_bytes_peak=int, kv_tokens=int, drafted_tokens=int, accepted_tokens=int, draft_kv_bytes=int,
                 peak_rss_bytes=int)
    assert 1 <= result["generated_tokens"] <= 9
    assert result["prompt_tokens"] >= 1
    # The last generated token need not be in the cache.
    total = result["prompt_tokens"] + result["generated_tokens"]
    assert total - 1 <= result["kv_tokens"] <= total
    assert result["kv_bytes"] > 0
    assert 1 << 20 < result["peak_rss_bytes"] < 1 << 30


def test_run_without_json_prints_only_the_text():
    arguments = ["run", LLAMA, "a small text", "--max-tokens", 9, *GREEDY]
    text = one(scrimp(*arguments, "--json"))["text"]
    assert scrimp(*arguments).ok().stdout.rstrip("\n") == text.rstrip("\n")


def test_prompt_from_stdin():
    arguments = ["--max-tokens", 5, *GREEDY, "--json"]
    given = one(scrimp("run", LLAMA, "the mill", *arguments))
    dash = one(scrimp("run", LLAMA, "-", *arguments, stdin=b"the mill"))
    pipe = one(scrimp("run", LLAMA, *arguments, stdin=b"the mill"))
    assert given["text"] == dash["text"] == pipe["text"]
    assert given["prompt_tokens"] == dash["prompt_tokens"] == pipe["prompt_tokens"]


def test_seed_decides():
    def text(seed):
        return one(scrimp("run", LLAMA, "the", "--raw", "--max-tokens", 20, "--temperature", 1.5, "--top-p", 1, "--top-k", 0,
                          "--seed", seed, "--json"))["text"]

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(5)}) > 1


def test_threads_do_not_change_the_text():
    def text(threads):
        return one(scrimp("run", LLAMA, "the rain", "--max-tokens", 20, *GREEDY, "--threads", threads, "--json"))["text"]

    assert text(1) and text(1) == text(2)


def test_stop_text_is_not_printed():
    arguments = ["run", LLAMA, "the rain", "--max-tokens", 20, *GREEDY, "--json"]
    whole = one(scrimp(*arguments))["text"]
    stop = whole[5:7]
    assert len(stop) == 2, "enough text to stop in"
    assert one(scrimp(*arguments, "--stop", stop))["text"] == whole[: whole.index(stop)]


def test_chat_template_needs_to_exist():
    # A directory with a template chats; one without says what to do.
    templated = one(scrimp("run", LLAMA, "hi", "--max-tokens", 2, "--json"))
    raw = one(scrimp("run", LLAMA, "hi", "--max-tokens", 2, "--raw", "--json"))
    assert templated["prompt_tokens"] > raw["prompt_tokens"]
    scrimp("run", TINY / "gemma3", "hi", "--max-tokens", 2).refused("template", "--raw")


def test_eval_ppl_json(tmp_path):
    result = one(scrimp("eval", "ppl", LLAMA, "--text", TEXT, "--context", 32, "--max-tokens", 320, "--json"))
    check_fields(result, ppl=float, nll=float, tokens=int)
    assert result["tokens"] == 310, "ten windows of 32, the first position of each is not scored"
    assert math.isclose(result["ppl"], math.exp(result["nll"]), rel_tol=1e-4)
    short = tmp_path / "short.txt"
    short.write_text("abc")
    scrimp("eval", "ppl", LLAMA, "--text", short, "--context", 32).refused("3 tokens", "window")


def test_eval_kl_json():
    options = ["--text", TEXT, "--context", 32, "--max-tokens", 320, "--kv-format", "f32", "--json"]
    same = one(scrimp("eval", "kl", LLAMA, "--against", LLAMA, *options))
    check_fields(same, kl=float, top1_agreement=float, ppl=float, ppl_reference=float, tokens=int)
    assert same["kl"] < 1e-3 and same["top1_agreement"] > 0.98
    assert math.isclose(same["ppl"], same["ppl_reference"], rel_tol=1e-2)


def test_eval_kl_sees_a_difference(tiny_copy):
    """Twice the final norm is twice every logit: the model is surer than it was, of the same tokens."""
    folder = tiny_copy("mistral")
    path = folder / "model.safetensors"
    header, data = read_safetensors(path)
    begin, end = header["model.norm.weight"]["data_offsets"]
    count = (end - begin) // 4
    weights = struct.unpack(f"<{count}f", data[begin:end])
    write_safetensors(path, header, data[:begin] + struct.pack(f"<{count}f", *(2 * w for w in weights)) + data[end:])
    result = one(scrimp("eval", "kl", folder, "--against", TINY / "mistral", "--text", TEXT, "--context", 32, "--max-tokens",
                        320, "--json"))
    assert result["kl"] > 0.01 and result["top1_agreement"] > 0.98, result
    assert not math.isclose(result["ppl"], result["ppl_reference"], rel_tol=0.01), result


def test_eval_kl_between_vocabularies_is_refused():
    scrimp("eval", "kl", LLAMA, "--against", TINY / "qwen2", "--text", TEXT, "--context", 32).refused("vocab")


def test_bench_decode_json():
    result = one(scrimp("bench", "decode", LLAMA, "--prompt", 32, "--tokens", 8, "--depth", 16, "--json"))
    check_fields(result, prefill_tok_s=float, decode_tok_s=float, accepted_per_step=float, kv_bytes=int,
                 kv_bytes_peak=int, peak_rss_bytes=int)
    assert result["prefill_tok_s"] > 0 and result["decode_tok_s"] > 0 and result["kv_bytes"] > 0


def test_kv_format_halves_the_cache():
    def kv(kv_format):
        return one(scrimp("run", LLAMA, "the rain", "--max-tokens", 9, *GREEDY, "--kv-format", kv_format, "--json"))["kv_bytes"]

    assert kv("f32") == 2 * kv("bf16") == 2 * kv("f16")


def test_inspect_json():
    result = one(scrimp("inspect", GGUF, "--json"))
    check_fields(result, family=str, layers=int, heads=int, kv_heads=int, context_length=int, tensors=int, types=list)
    assert (result["family"], result["layers"], result["kv_heads"], result["context_length"]) == ("llama", 2, 2, 128)
    assert {"Q4_K", "Q6_K", "Q8_0", "bf16"} <= {row.get("type", row.get("name")) for row in result["types"]}


def test_models_json():
    rows = scrimp("models", "--json").json()
    if len(rows) == 1 and "models" in rows[0]:
        rows = rows[0]["models"]
    names = {row["model"] for row in rows}
    assert {"smollm2", "gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"} <= names


def test_doctor_json():
    result = one(scrimp("doctor", "--json"))
    check_fields(result, tier=str, supported_tiers=list, threads=int, read_gb_per_s=float)
    assert result["threads"] >= 1 and result["read_gb_per_s"] > 0.1
    assert result["tier"] in result["supported_tiers"] and "scalar" in result["supported_tiers"]


def test_completions():
    for shell in ["bash", "zsh", "fish"]:
        assert "scrimp" in scrimp("completions", shell).ok().stdout


def test_help_of_every_verb():
    for verb in [[], ["run"], ["pull"], ["models"], ["inspect"], ["eval"], ["eval", "ppl"], ["eval", "kl"], ["bench"],
                 ["bench", "decode"], ["doctor"]]:
        assert "Usage" in scrimp(*verb, "--help").ok().stdout


@pytest.mark.parametrize("arguments", [
    ["nonsense"], ["run"], ["run", LLAMA, "x", "--temperature", "-1"], ["run", LLAMA, "x", "--top-p", "1.5"],
    ["run", LLAMA, "x", "--kv-format", "int3"], ["run", LLAMA, "x", "--max-tokens", "many"], ["eval", "ppl", LLAMA],
    ["bench", "decode"], ["--threads", "0", "models"],
], ids=lambda a: " ".join(map(str, a[-2:])))
def test_wrong_usage_is_status_2(arguments):
    ran = scrimp(*arguments)
    assert ran.status == 2 and ran.stderr.startswith("error:") and not ran.stdout, ran.stderr


def test_json_object_has_no_surprises_on_stdout():
    ran = scrimp("run", LLAMA, "a\nb", "--max-tokens", 3, *GREEDY, "--json").ok()
    assert ran.stdout.count("\n") == 1 and json.loads(ran.stdout)
