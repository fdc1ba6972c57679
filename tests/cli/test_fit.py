"""`scrimp fit` on a real model: the plan fits into the memory, and the other verbs confirm it."""

import json
import shlex

import pytest

from conftest import TEXT, TINY, scrimp

# More than SmolLM2 needs for one conversation of 2048 tokens, and less than it needs for four.
MEMORY = 250_000_000


def fit(*arguments, timeout=300):
    return scrimp("fit", *arguments, "--json", timeout=timeout).json()[0]


def test_what_fits_stays_as_it_is(smollm2):
    plan = fit(smollm2, "--memory", MEMORY, "--context", 2048)
    assert plan["compress"] is None and plan["kl"] == 0 and plan["kv_options"] == "" and len(plan["options"]) == 1
    assert plan["run"] == f"scrimp run {smollm2}"
    assert plan["total_bytes"] == plan["weights_bytes"] + plan["kv_bytes"] + plan["working_bytes"] <= MEMORY
    # It is what the process takes: a prompt of nearly that length.
    text = (TEXT.read_text() * 2)[:6500]
    ran = scrimp("run", smollm2, "--raw", "-", "--max-tokens", 2, "--json", stdin=text.encode()).json()[0]
    assert ran["prompt_tokens"] > 1500 and ran["peak_rss_bytes"] < plan["total_bytes"]


def test_several_conversations_get_smaller_caches(smollm2):
    plan = fit(smollm2, "--memory", MEMORY, "--context", 2048, "--sequences", 4, "--text", TEXT)
    best, options = plan["options"][0], plan["options"]
    assert plan["kv_options"] == best["kv_options"] != "" and plan["compress"] is None
    assert [o["kl"] for o in options] == sorted(o["kl"] for o in options) and len(options) > 3
    assert all(o["total_bytes"] <= MEMORY and o["kl"] == o["kl_kv"] + o["kl_weights"] for o in options)
    # A cache in 4 bits loses more than one in 8, a quarter more than half.
    losses = {o["kv_options"]: o["kl_kv"] for o in options}
    assert losses["--kv-format int4"] > losses["--kv-format int8"] > 0
    command = shlex.split(plan["run"])
    assert command[:3] == ["scrimp", "serve", str(smollm2)] and command[command.index("--max-seqs") + 1] == "4"


def test_weights_are_compressed_where_caches_cannot_help(tmp_path):
    model, out = TINY / "llama", tmp_path / "small.safetensors"
    whole = fit(model, "--memory", 10**9, "--context", 64)
    memory = whole["total_bytes"] - 200_000
    plan = fit(model, "--memory", memory, "--context", 64, "-o", out, "--text", TEXT)
    assert out.stat().st_size <= plan["weights_bytes"] * 1.01 < whole["weights_bytes"] and plan["total_bytes"] <= memory
    assert plan["kl_weights_measured"] > 0 and plan["kl_weights"] > 0
    assert plan["options"][0]["compressed"]
    assert scrimp(*shlex.split(plan["run"])[1:], "--raw", "Hello", "--max-tokens", 4, "--json").json()[0]["generated_tokens"] > 0
    # The command that it names writes the same file.
    again = tmp_path / "again.safetensors"
    command = shlex.split(plan["compress"])
    command[command.index("-o") + 1] = again
    scrimp(*command[1:]).ok()
    assert again.stat().st_size == out.stat().st_size
    # Less than anything can be.
    refused = scrimp("fit", model, "--memory", memory - whole["weights_bytes"], "--context", 64)
    refused.refused("are not enough")


@pytest.mark.parametrize("arguments, status, word", [
    (("--memory", "1GB", "--context", 1), 2, "2 or more"),
    (("--memory", "x", "--context", 64), 2, "is not a size"),
    (("--memory", "1GB", "--context", 64, "--sequences", 0), 2, "sequences"),
    (("--memory", "1GB", "--context", 100_000), 2, "context has"),
    (("--memory", "1GB", "--context", 64, "-o", "out.gguf"), 2, "OUT.safetensors"),
    (("--memory", "1MB", "--context", 64), 1, "are not enough"),
    (("--memory", "1MB", "--context", 64, "--text", "/nonexistent"), 1, "/nonexistent"),
])
def test_what_cannot_be(arguments, status, word):
    scrimp("fit", TINY / "llama", *arguments).refused(word, status=status)


def test_a_compressed_model_is_not_compressed_again(tmp_path):
    out = tmp_path / "small.safetensors"
    scrimp("compress", TINY / "llama", "-o", out, "--format", "int8").ok()
    plan = fit(out, "--memory", 10**9, "--context", 64)
    assert plan["compress"] is None and json.dumps(plan)
    refused = scrimp("fit", out, "--memory", 10**6, "--context", 64)
    refused.refused("are not enough")
