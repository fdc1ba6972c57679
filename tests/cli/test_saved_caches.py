"""`run --kv-save` and `--kv-load`: a text is read once and continued later."""

import pytest

from conftest import TEXT, TINY, scrimp
from test_serve import Server, model  # noqa: F401  (model: a fixture)

RAW = ("--raw", "--max-tokens", 4, "--json")


@pytest.fixture
def run(model):  # noqa: F811
    def run(*arguments, text="", model=model):  # noqa: F811
        return scrimp("run", model, *arguments, "-", stdin=text.encode())

    return run


@pytest.fixture(scope="module")
def text():
    return TEXT.read_text()[:400]


@pytest.mark.parametrize("kv", [(), ("--kv-budget", "0.5", "--kv-policy", "snapkv"), ("--kv-format", "int8")])
def test_a_loaded_cache_answers_like_the_one_that_was_saved(run, tmp_path, text, kv):
    cache = tmp_path / "a.kv"
    first = run("--kv-save", cache, *kv, *RAW, text=text).json()[0]
    again = run("--kv-load", cache, *kv, *RAW, text=text).json()[0]
    assert again["text"] == first["text"]
    assert again["cached_tokens"] == again["prompt_tokens"] - 1, "only the last token is computed"
    assert "kv_restore_s" in again and "kv_restore_s" not in first


def test_another_prompt_continues_the_text(run, tmp_path, text):
    cache = tmp_path / "a.kv"
    run("--kv-save", cache, *RAW[:1], "--max-tokens", 0, text=text).ok()
    more = run("--kv-load", cache, *RAW, text=" and then").json()[0]
    assert more["text"] == run(*RAW, text=text + " and then").json()[0]["text"]
    assert more["cached_tokens"] > 0.9 * more["prompt_tokens"]


def test_a_conversation_goes_on(run, tmp_path):
    cache = tmp_path / "a.kv"
    options = ("--max-tokens", 4, "--json")
    run("--kv-save", cache, *options, text="Hello").ok()
    second = run("--kv-load", cache, "--kv-save", cache, *options, text="And?").json()[0]
    third = run("--kv-load", cache, *options, text="Why?").json()[0]
    assert third["prompt_tokens"] > second["prompt_tokens"] > 0
    assert third["cached_tokens"] > 0


def test_files_of_others_are_refused(run, tmp_path, text):
    cache = tmp_path / "a.kv"
    run("--kv-save", cache, *RAW, text=text).ok()
    run("--kv-load", cache, *RAW, text=text, model=TINY / "qwen2").refused("another model", "tiny-chat")
    run("--kv-load", cache, "--kv-format", "int8", *RAW, text=text).refused("other options", "--kv-format int8")
    run("--kv-load", cache, "--max-tokens", 4, text=text).refused("--raw", status=2)
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-100])
    run("--kv-load", cache, *RAW, text=text).refused("not a complete saved cache", "ends early")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    cache.write_bytes(flipped)
    run("--kv-load", cache, *RAW, text=text).refused("not a complete saved cache")
    run("--kv-load", TEXT, *RAW, text=text).refused("not a saved KV cache")
    missing = run("--kv-save", tmp_path / "no" / "a.kv", *RAW, text=text)
    assert missing.status == 1 and "directory does not exist" in missing.stderr


def test_the_server_keeps_prompts_across_restarts(model, tmp_path):  # noqa: F811
    directory = tmp_path / "kept"
    prompt = {"model": "tiny-chat", "prompt": [1 + i % 200 for i in range(600)], "max_tokens": 4, "temperature": 0}

    def complete():
        server = Server(model, "--kv-dir", directory, "--kv-dir-size", "64MiB")
        try:
            return server.post("/v1/completions", prompt)[1]
        finally:
            server.stop()

    first = complete()
    assert [path.suffix for path in directory.iterdir()] == [".kv"]
    second = complete()
    assert second["choices"][0]["text"] == first["choices"][0]["text"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 576, "whole blocks of 64"
    for path in directory.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    third = complete()
    assert third["choices"][0]["text"] == first["choices"][0]["text"], "a damaged file is not used"
