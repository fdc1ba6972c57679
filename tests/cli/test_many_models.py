"""Several language models in one server: loaded when a request names them, unloaded when another needs the memory."""

import concurrent.futures
import json
import random
import shutil
import urllib.error
import urllib.request

import pytest

from conftest import ROOT, TINY, scrimp
from test_serve import Server

NAMES = ("llama", "qwen3", "gemma3")
KV = 256 << 20


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models with room for longer texts."""
    folder = tmp_path_factory.mktemp("models")
    for name in NAMES:
        shutil.copytree(TINY / name, folder / name)
        path = folder / name / "config.json"
        path.chmod(0o644)
        path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 2048}))
    return [folder / name for name in NAMES]


@pytest.fixture
def server(models):
    """A server for two of the three models."""
    # The buffers of a model account for 32 MiB.
    server = Server(*models, "--memory", (KV + (32 << 20)) * 5 // 2, "--kv-memory", KV, "--kv-format", "f32", "--no-prefix-caching")
    yield server
    assert server.stop() == 0


def loaded(server):
    with urllib.request.urlopen(server.url + "/v1/models", timeout=10) as answer:
        return {model["id"] for model in json.loads(answer.read())["data"] if model["loaded"]} & set(NAMES)


def complete(server, model, prompt="The rain in the hills", **fields):
    body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **fields}
    status, answer = server.post("/v1/completions", body)
    return status, answer["choices"][0]["text"] if status == 200 else answer["error"]["code"]


def test_the_least_recently_used_model_is_unloaded(server):
    assert loaded(server) == {"llama"}
    first = {name: complete(server, name) for name in NAMES[:2]}
    assert {status for status, _ in first.values()} == {200} and loaded(server) == {"llama", "qwen3"}
    assert complete(server, "llama") == first["llama"]
    assert complete(server, "gemma3")[0] == 200 and loaded(server) == {"llama", "gemma3"}
    assert complete(server, "qwen3") == first["qwen3"] and loaded(server) == {"gemma3", "qwen3"}
    # Without a name, the first model answers; others have their own names in answers.
    status, answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2})
    assert status == 200 and answer["model"].endswith("llama") and loaded(server) == {"qwen3", "llama"}
    with urllib.request.urlopen(server.url + "/api/ps", timeout=10) as answer:
        assert sorted(model["name"].rsplit("/", 1)[-1] for model in json.loads(answer.read())["models"]) == ["llama", "qwen3"]
    # Lists of models load none.
    assert server.post("/api/show", {"model": "gemma3"})[1]["model_info"]["gemma3.context_length"] == 2048
    assert loaded(server) == {"qwen3", "llama"}


def test_models_in_use_stay_and_others_wait(server):
    streams = []
    for name in NAMES[:2]:
        body = {"model": name, "prompt": "The cat", "max_tokens": 1900, "n": 8, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        streams.append(urllib.request.urlopen(request, timeout=60))
        streams[-1].readline()
    with pytest.raises(urllib.error.HTTPError) as refused:
        body = json.dumps({"model": "gemma3", "prompt": "a"}).encode()
        urllib.request.urlopen(urllib.request.Request(server.url + "/v1/completions", body, {"Content-Type": "application/json"}), timeout=60)
    assert refused.value.code == 429 and refused.value.headers["Retry-After"] == "1"
    assert json.loads(refused.value.read())["error"]["code"] == "models_in_use"
    assert all(stream.read().endswith(b"data: [DONE]\n\n") for stream in streams)
    assert complete(server, "gemma3")[0] == 200


def test_simultaneous_requests_have_right_answers_or_wait(server):
    want = {name: complete(server, name)[1] for name in NAMES}
    order = random.Random(1).choices(NAMES, k=60)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda name: (name, *complete(server, name)), order))
    assert {status for _, status, _ in found} <= {200, 429}
    assert all(text == want[name] for name, status, text in found if status == 200)
    assert sum(status == 200 for _, status, _ in found) >= 20
    assert server.metric("num_requests_running") == 0 and server.metric("kv_cache_bytes") == 0


def test_without_a_limit_all_stay(models):
    server = Server(*models, ROOT / "testdata" / "tiny-encoders" / "bert", "--kv-format", "f32")
    assert [complete(server, name)[0] for name in NAMES] == [200] * 3 and loaded(server) == set(NAMES)
    assert server.post("/v1/embeddings", {"input": "a"})[0] == 200
    assert server.stop() == 0


def test_a_model_that_never_fits_is_refused(models):
    scrimp("serve", *models, "--memory", "1MiB", "--port", 0).refused("--memory", "llama")
