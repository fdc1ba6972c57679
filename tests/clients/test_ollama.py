"""Ollama's Python client, unmodified, against `scrimp serve`. The model has random weights, so the structure of an answer is
tested and its content is not."""

import json
import pathlib
import sys
import urllib.request

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))

import thinkers
from test_serve import Server, model  # noqa: F401 (a fixture)

ollama = pytest.importorskip("ollama", reason="SKIPPED: ollama is not installed")

USER = [{"role": "user", "content": "Ann lives in Rome."}]
GREEDY = {"num_predict": 12, "temperature": 0}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


@pytest.fixture(scope="module")
def server(model):  # noqa: F811
    server = Server(model, "--kv-format", "f32", "--served-model-name", "tiny-chat")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    return ollama.Client(host=server.url)


@pytest.fixture(scope="module")
def thinking(model, tmp_path_factory):  # noqa: F811
    """A client of a model that reasons."""
    server = Server(thinkers.thinker(model, tmp_path_factory.mktemp("models")), "--kv-format", "f32")
    yield ollama.Client(host=server.url)
    assert server.stop() == 0


def test_clients_find_the_model(client):
    entry = next(entry for entry in client.list().models if entry.model == "tiny-chat")
    assert entry.size > 0 and entry.digest and entry.details.family == "llama" and entry.modified_at.year > 2000
    shown = client.show("tiny-chat")
    assert "completion" in shown.capabilities and "tools" in shown.capabilities and "{%" in shown.template
    assert shown.modelinfo["llama.context_length"] == 2048
    assert client.ps().models[0].model == "tiny-chat"


def test_a_chat(client):
    answer = client.chat("tiny-chat", USER, options=GREEDY)
    assert answer.message.role == "assistant" and answer.message.content and answer.done
    assert answer.done_reason in ("stop", "length") and answer.eval_count <= 12 and answer.prompt_eval_count > 0
    assert answer.total_duration >= answer.prompt_eval_duration > 0
    chunks = list(client.chat("tiny-chat:latest", USER, options=GREEDY, stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == answer.message.content
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].eval_count == answer.eval_count


def test_a_prompt(client):
    answer = client.generate("tiny-chat", "Ann lives in Rome.", system="Be brief.", options=GREEDY)
    assert answer.response and answer.done
    streamed = list(client.generate("tiny-chat", "Ann lives in Rome.", system="Be brief.", options=GREEDY, stream=True))
    assert "".join(chunk.response for chunk in streamed) == answer.response
    chat = client.chat("tiny-chat", [{"role": "system", "content": "Be brief."}, *USER], options=GREEDY)
    assert chat.message.content == answer.response
    raw = client.generate("tiny-chat", "Ann lives in Rome.", raw=True, options=GREEDY)
    assert raw.prompt_eval_count < answer.prompt_eval_count
    assert client.generate("tiny-chat", "").done_reason == "load"


def test_options_change_the_answer(client):
    text = client.generate("tiny-chat", "Once", options={**GREEDY, "num_predict": 24}).response
    stop = text[5:8]
    stopped = client.generate("tiny-chat", "Once", options={**GREEDY, "num_predict": 24, "stop": [stop]})
    assert (stopped.response, stopped.done_reason) == (text[:text.index(stop)], "stop")
    sampled = [client.generate("tiny-chat", "Once", options={"num_predict": 12, "temperature": 1.5, "seed": seed}).response for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_format_bounds_the_answer(client):
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    answer = client.chat("tiny-chat", USER, format=schema, options={"num_predict": 60})
    assert json.loads(answer.message.content)["city"] in ("Rome", "Oslo")


def test_tools_and_their_results(client):
    history = [*USER, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]},
               {"role": "tool", "tool_name": "weather", "content": "Sunny."}]
    answer = client.chat("tiny-chat", history, tools=[WEATHER], options=GREEDY)
    assert answer.prompt_eval_count > client.chat("tiny-chat", USER, tools=[WEATHER], options=GREEDY).prompt_eval_count


def test_embeddings(client):
    one = client.embed("tiny-chat", "The cat").embeddings
    two = client.embed("tiny-chat", ["The cat", "A king"])
    assert len(one) == 1 and len(two.embeddings) == 2 and two.prompt_eval_count > 0
    assert abs(sum(x * x for x in one[0]) - 1) < 1e-4 and list(one[0]) == pytest.approx(list(two.embeddings[0]), abs=1e-5)
    assert list(client.embeddings("tiny-chat", "The cat").embedding) == pytest.approx(list(one[0]), abs=1e-5)


def test_thinking_is_apart(thinking):
    options = {"num_predict": 40, "temperature": 1, "seed": 1, "ignore_eos": True}
    answer = thinking.chat("thinker", USER, think=True, options=options)
    assert answer.message.thinking and not answer.message.content
    off = thinking.chat("thinker", USER, think=False, options=options)
    assert off.message.content and not off.message.thinking
    chunks = list(thinking.chat("thinker", USER, think=True, options=options, stream=True))
    assert "".join(chunk.message.thinking or "" for chunk in chunks) == answer.message.thinking
    assert "thinking" in thinking.show("thinker").capabilities


def test_curl_needs_no_content_type(server):
    body = json.dumps({"model": "tiny-chat", "prompt": "Once", "stream": False, "options": GREEDY, "nonsense": 1}).encode()
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    with urllib.request.urlopen(urllib.request.Request(server.url + "/api/generate", body, kind), timeout=60) as answer:
        assert json.loads(answer.read())["done"]
    # Pages of other origins need the type of JSON, which browsers do not send unasked.
    assert server.post("/api/generate", body, **kind, Origin="https://example.org")[0] == 415
    with urllib.request.urlopen(server.url + "/api/version", timeout=10) as answer:
        assert json.loads(answer.read())["version"]


@pytest.mark.parametrize("path, body, status, word", [
    ("/api/chat", {"model": "nothing", "messages": USER}, 404, "nothing"),
    ("/api/chat", {"messages": USER}, 400, "model"),
    ("/api/chat", {"model": "tiny-chat", "messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400, "images"),
    ("/api/generate", {"model": "tiny-chat", "prompt": "x", "options": {"top_p": 2}}, 400, "top_p"),
    ("/api/generate", {"model": "tiny-chat", "prompt": "x", "suffix": "y"}, 400, "middle"),
    ("/api/embed", {"model": "tiny-chat"}, 400, "input"),
    ("/api/pull", {"model": "tiny-chat"}, 404, "path"),
])
def test_errors_have_the_apis_form(server, path, body, status, word):
    answer = server.post(path, body)
    assert answer[0] == status and word in answer[1]["error"]
