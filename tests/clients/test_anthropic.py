"""Anthropic's Python client, unmodified, against `scrimp serve`. The model has random weights, so the structure of an answer
is tested and its content is not."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))

import thinkers
from test_serve import Server, model  # noqa: F401 (a fixture)

anthropic = pytest.importorskip("anthropic", reason="SKIPPED: anthropic is not installed")

USER = [{"role": "user", "content": "Ann lives at 5 Elm St, Rome."}]
WEATHER = {"name": "weather", "description": "The weather of a city.", "input_schema": {
    "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}}, "required": ["city", "days"]}}

@pytest.fixture(scope="module")
def server(model):  # noqa: F811
    server = Server(model, "--kv-format", "f32", "--served-model-name", "tiny-chat", "--api-key", "secret")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    return anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def thinker(model, tmp_path_factory):  # noqa: F811
    """A client of a model that reasons."""
    server = Server(thinkers.thinker(model, tmp_path_factory.mktemp("models")), "--kv-format", "f32")
    yield anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0, timeout=60)
    assert server.stop() == 0


#: Fields that newer clients do not list.
OTHERS = ("temperature", "seed", "ignore_eos", "temprature")


def request(**fields):
    """The arguments of a call."""
    fields = {"model": "tiny-chat", "max_tokens": 16, "temperature": 0, "messages": USER, **fields}
    return {**{k: v for k, v in fields.items() if k not in OTHERS}, "extra_body": {k: v for k, v in fields.items() if k in OTHERS}}


def ask(client, messages=None, **fields):
    return client.messages.create(**request(messages=messages or fields.pop("messages", USER), **fields))


def prompt_tokens(message):
    return message.usage.input_tokens + message.usage.cache_read_input_tokens


def streamed(client, **fields):
    """(events, final message) of a streamed answer."""
    with client.messages.stream(**request(**fields)) as stream:
        events = [event.type for event in stream]
        return events, stream.get_final_message()


def test_a_message(client):
    answer = ask(client, system="Be brief.")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "tiny-chat")
    assert answer.content[0].type == "text" and answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens") and answer.stop_sequence is None
    assert answer.usage.input_tokens > 0 and 0 < answer.usage.output_tokens <= 16


def test_a_stream_ends_as_the_message(client):
    whole = ask(client)
    events, message = streamed(client)
    assert message.content[0].text == whole.content[0].text
    assert (message.stop_reason, message.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert events[0] == "message_start" and events[-1] == "message_stop"
    raw = [event.type for event in ask(client, stream=True)]
    assert [kind for i, kind in enumerate(raw) if i == 0 or raw[i - 1] != kind] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"]


def test_stop_sequences_are_named(client):
    text = ask(client, max_tokens=24).content[0].text
    stop = text[4:7]
    answer = ask(client, max_tokens=24, stop_sequences=["never", stop])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert answer.content[0].text == text[:text.index(stop)]
    assert streamed(client, max_tokens=24, stop_sequences=[stop])[1].stop_sequence == stop


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}], ids=["any", "tool"])
def test_tools_are_called_and_their_results_continue(client, choice):
    fields = dict(tools=[WEATHER], tool_choice=choice, max_tokens=200, temperature=1, seed=3)
    answer = ask(client, **fields)
    assert answer.stop_reason == "tool_use"
    call = answer.content[-1]
    assert call.type == "tool_use" and call.name == "weather" and call.input["city"] in ("Rome", "Oslo")
    events, message = streamed(client, **fields)
    assert message.content[-1].input == call.input and "input_json" in events
    deltas = [event.delta.partial_json for event in ask(client, stream=True, **fields)
              if event.type == "content_block_delta" and event.delta.type == "input_json_delta"]
    assert len(deltas) > 2 and json.loads("".join(deltas)) == call.input
    history = [*USER, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Sunny."}], "is_error": False},
        {"type": "text", "text": "And tomorrow?"}]}]
    after = ask(client, history, tools=[WEATHER])
    assert prompt_tokens(after) > prompt_tokens(answer)


def test_structured_output_matches_its_schema(client):
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"], "additionalProperties": False}
    answer = ask(client, max_tokens=60, temperature=1, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(answer.content[0].text)["city"] in ("Rome", "Oslo")


def test_count_tokens_is_the_prompts_length(client):
    fields = dict(model="tiny-chat", messages=USER, system="Be brief.", tools=[WEATHER])
    count = client.messages.count_tokens(**fields).input_tokens
    assert count == prompt_tokens(ask(client, system="Be brief.", tools=[WEATHER]))


def test_a_conversation_that_continues_is_read_from_the_cache(client):
    text = "The cat went to the sea. " * 12
    first = ask(client, [{"role": "user", "content": text}])
    again = ask(client, [{"role": "user", "content": text}, {"role": "assistant", "content": first.content}, {"role": "user", "content": "Go on."}])
    assert again.usage.cache_read_input_tokens >= 64


def test_thinking_has_blocks_and_a_budget(thinker):
    fields = dict(model="thinker", thinking={"type": "enabled", "budget_tokens": 5}, max_tokens=40, temperature=1,
                  seed=1, ignore_eos=True)
    answer = ask(thinker, **fields)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    thought, said = answer.content[0].thinking, answer.content[1].text
    assert thought and said and "</think>" not in thought + said
    events, message = streamed(thinker, **fields)
    assert (message.content[0].thinking, message.content[1].text) == (thought, said) and "thinking" in events
    history = [*USER, {"role": "assistant", "content": answer.content}, {"role": "user", "content": "Go on."}]
    assert ask(thinker, history, **fields).content
    # Thinking is off unless a request switches it on.
    assert [block.type for block in ask(thinker, model="thinker", ignore_eos=True).content] == ["text"]


def test_thinking_precedes_a_required_call(thinker):
    answer = ask(thinker, model="thinker", thinking={"type": "enabled", "budget_tokens": 5}, max_tokens=200, temperature=1,
                 tools=[WEATHER], tool_choice={"type": "any"})
    assert [block.type for block in answer.content] == ["thinking", "tool_use"] and answer.stop_reason == "tool_use"


@pytest.mark.parametrize("fields, status, kind, word", [
    ({"model": "nothing"}, 404, "not_found_error", "nothing"),
    ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_request_error", "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400, "invalid_request_error", "image"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 400, "invalid_request_error", "web_search"),
    ({"temprature": 1}, 400, "invalid_request_error", "temprature"),
    ({"messages": [{"role": "user", "content": "word " * 4000}]}, 400, "invalid_request_error", "prompt is too long"),
])
def test_errors_have_the_apis_form(client, fields, status, kind, word):
    with pytest.raises(anthropic.APIStatusError) as caught:
        ask(client, **fields)
    body = caught.value.body
    assert caught.value.status_code == status and body["type"] == "error"
    assert body["error"]["type"] == kind and word in body["error"]["message"]


def test_keys_are_checked(server):
    stranger = anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError) as caught:
        ask(stranger)
    assert caught.value.body["error"]["type"] == "authentication_error"
    status, body = server.post("/v1/messages/batches", {})
    assert status in (401, 404) and body["type"] == "error"


def test_models_are_listed(client):
    assert "tiny-chat" in [entry.id for entry in client.models.list()]
