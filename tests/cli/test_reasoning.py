"""Reasoning: `scrimp run --think`, and the fields of chat requests. Random weights never end their reasoning themselves."""

import json

import pytest
import thinkers
from conftest import TINY, scrimp
from test_serve import Server, model  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def thinker(model, tmp_path_factory):  # noqa: F811
    return thinkers.thinker(model, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(thinker):
    server = Server(thinker, "--kv-format", "f32", "--think", "4")
    yield server
    assert server.stop() == 0


def chat(server, **fields):
    messages = [{"role": "user", "content": "Ann lives in Rome."}]
    body = {"messages": messages, "max_tokens": 24, "temperature": 1, "seed": 1, "ignore_eos": True, **fields}
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200, answer
    return answer["choices"][0]["message"], answer["usage"]["completion_tokens_details"]["reasoning_tokens"]


def test_run_shows_reasoning_apart_from_the_answer(thinker):
    arguments = ("run", thinker, "Hi", "--max-tokens", 24, "--temperature", 1, "--seed", 3)
    [limited] = scrimp(*arguments, "--think", 3, "--json").json()
    assert limited["reasoning"] and limited["text"]
    plain = scrimp(*arguments, "--think", 3).ok()
    assert plain.stdout.strip() == limited["text"].strip() and limited["reasoning"] in plain.stderr
    [whole] = scrimp(*arguments, "--json").json()
    assert whole["reasoning"].startswith(limited["reasoning"]) and whole["text"] == ""
    [off] = scrimp(*arguments, "--think", "off", "--json").json()
    assert off["reasoning"] == "" and off["text"]


def test_run_refuses_reasoning_of_other_models():
    scrimp("run", TINY / "llama", "Hi", "--think", "on").refused("no reasoning", "--think")
    assert "reasoning" not in scrimp("run", TINY / "llama", "Hi", "--think", "off", "--max-tokens", 2, "--json").json()[0]
    scrimp("run", TINY / "llama", "Hi", "--think", "perhaps").refused("on, off or a number", status=2)


@pytest.mark.parametrize("fields, limit", [
    ({}, 4),
    ({"thinking_budget": 6}, 6),
    ({"reasoning": {"max_tokens": 2}}, 2),
    ({"reasoning_effort": "high"}, None),
    ({"enable_thinking": False}, 0),
    ({"chat_template_kwargs": {"enable_thinking": False}}, 0),
    ({"reasoning_effort": "none"}, 0),
])
def test_requests_bound_the_reasoning(server, fields, limit):
    message, tokens = chat(server, **fields)
    if limit is None:
        assert message["content"] == "" and tokens == 24
    elif limit == 0:
        assert message["content"] and "reasoning_content" not in message and tokens == 0
    else:
        # The closing mark belongs to the reasoning.
        assert message["content"] and message["reasoning_content"] and limit <= tokens < 24
    assert "think>" not in json.dumps(message)


def test_streams_have_the_same_reasoning(server):
    message, _ = chat(server)
    client = server.client()
    chunks = client.chat.completions.create(model="thinker", messages=[{"role": "user", "content": "Ann lives in Rome."}], max_tokens=24,
                                            temperature=1, seed=1, stream=True, extra_body={"ignore_eos": True})
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == message["reasoning_content"]
    assert "".join(delta.content or "" for delta in deltas) == message["content"]


def test_a_schema_begins_after_the_reasoning(server):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    fields = dict(max_tokens=80, ignore_eos=False, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    for seed in range(3):
        message, tokens = chat(server, seed=seed, **fields)
        assert message["reasoning_content"] and tokens >= 4 and isinstance(json.loads(message["content"])["ok"], bool)
        message, tokens = chat(server, seed=seed, enable_thinking=False, **fields)
        assert tokens == 0 and isinstance(json.loads(message["content"])["ok"], bool)


def test_reasoning_of_the_history_reaches_the_prompt(server):
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "because"}, {"role": "user", "content": "c"}]
    prompt = server.post("/apply-template", {"messages": history})[1]["prompt"]
    assert "<think>because</think>b" in prompt and prompt.endswith("<think>\n")
    closed = server.post("/apply-template", {"messages": history, "enable_thinking": False})[1]["prompt"]
    assert closed.endswith("</think>\n\n")


def test_a_template_that_always_reasons_gets_empty_reasoning(model, tmp_path):  # noqa: F811
    always = thinkers.ALWAYS.replace("enable_thinking is not defined or enable_thinking", "true")
    server = Server(thinkers.thinker(model, tmp_path, always))
    prompt = server.post("/apply-template", {"messages": [{"role": "user", "content": "a"}], "enable_thinking": False})[1]["prompt"]
    assert prompt.endswith("<think>\n\n</think>\n\n") and prompt.count("<think>") == 1
    assert server.stop() == 0


@pytest.mark.parametrize("fields, word", [({"reasoning_effort": "much"}, "reasoning_effort"), ({"thinking_budget": -2}, "thinking_budget")])
def test_errors_name_their_field(server, fields, word):
    status, answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], **fields})
    assert status == 400 and word in answer["error"]["message"]
