"""OpenAI's Responses API with the openai package, unmodified. The model has random weights, so the structure of an answer is
tested and its content is not."""

import json
import pathlib
import sys
from typing import Literal

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))

import thinkers
from test_serve import Server, model  # noqa: F401 (a fixture)

openai = pytest.importorskip("openai", reason="SKIPPED: openai is not installed")
pydantic = pytest.importorskip("pydantic", reason="SKIPPED: pydantic is not installed")

WEATHER = {"type": "function", "name": "weather", "description": "The weather of a city.", "strict": True, "parameters": {
    "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}}, "required": ["city", "days"],
    "additionalProperties": False}}


class Look(pydantic.BaseModel):
    """Looks at a place."""
    city: Literal["Rome", "Oslo"]
    deep: bool


@pytest.fixture(scope="module")
def server(model):  # noqa: F811
    server = Server(model, "--kv-format", "f32", "--served-model-name", "tiny-chat")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    return server.client()


@pytest.fixture(scope="module")
def thinking(model, tmp_path_factory):  # noqa: F811
    """A client of a model that reasons."""
    server = Server(thinkers.thinker(model, tmp_path_factory.mktemp("models")), "--kv-format", "f32")
    yield server.client()
    assert server.stop() == 0


def ask(client, question="Ann lives in Rome.", **fields):
    return client.responses.create(input=question, **{"model": "tiny-chat", "max_output_tokens": 16, "temperature": 0, **fields})


def test_a_response(client):
    answer = ask(client, instructions="Be brief.", metadata={"a": "b"})
    assert answer.output_text and answer.output[0].type == "message" and answer.output[0].role == "assistant"
    assert answer.status in ("completed", "incomplete") and answer.instructions == "Be brief." and answer.metadata == {"a": "b"}
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    if answer.status == "incomplete":
        assert answer.incomplete_details.reason == "max_output_tokens"


def test_a_stream_ends_as_the_response(client):
    whole = ask(client)
    events = list(ask(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] == f"response.{whole.status}"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens


def test_functions_are_called_and_their_results_continue(client):
    question = [{"role": "user", "content": "Weather in Rome?"}]
    fields = dict(tools=[WEATHER], tool_choice="required", max_output_tokens=200, temperature=1, extra_body={"seed": 3})
    answer = ask(client, question, **fields)
    call = answer.output[-1]
    assert call.type == "function_call" and call.name == "weather" and json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    events = list(ask(client, question, stream=True, **fields))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    arguments = "".join(deltas)
    assert len(deltas) > 2, deltas
    assert arguments == call.arguments == events[-1].response.output[-1].arguments
    question += [item.model_dump() for item in answer.output]
    question += [{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}]
    after = ask(client, question, tools=[WEATHER])
    assert after.usage.input_tokens > answer.usage.input_tokens
    # The server keeps the conversation, so its end suffices.
    stored = ask(client, [{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}],
                 previous_response_id=answer.id, tools=[WEATHER])
    assert stored.output_text == after.output_text and stored.usage.input_tokens == after.usage.input_tokens


def test_a_call_that_is_cut_is_incomplete(client):
    tool = {"type": "function", "name": "say", "parameters": {"type": "object", "properties": {
        "text": {"type": "string", "minLength": 200}}, "required": ["text"], "additionalProperties": False}}
    fields = dict(tools=[tool], tool_choice="required", max_output_tokens=100, temperature=1, extra_body={"seed": 1})
    answer = ask(client, **fields)
    assert (answer.status, answer.output[-1].status) == ("incomplete", "incomplete")
    last = list(ask(client, stream=True, **fields))[-1]
    assert last.type == "response.incomplete" and last.response.output[-1].status == "incomplete"
    assert last.response.output[-1].arguments == answer.output[-1].arguments


def test_custom_tools_have_a_text(client):
    tool = {"type": "custom", "name": "shell", "description": "Runs a command."}
    fields = dict(tools=[tool], tool_choice={"type": "custom", "name": "shell"}, max_output_tokens=1800, temperature=1, extra_body={"seed": 1})
    answer = ask(client, **fields)
    call = answer.output[-1]
    assert call.type == "custom_tool_call" and call.name == "shell" and isinstance(call.input, str)
    events = list(ask(client, stream=True, **fields))
    assert "".join(event.delta for event in events if event.type == "response.custom_tool_call_input.delta") == call.input


def test_structured_output_is_parsed(client):
    answer = client.responses.parse(model="tiny-chat", input="Look at Rome.", text_format=Look, max_output_tokens=200, temperature=1)
    assert isinstance(answer.output_parsed, Look)
    with client.responses.stream(model="tiny-chat", input="Look at Rome.", text_format=Look, max_output_tokens=200, temperature=1) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Look)


def test_previous_responses_continue(client):
    text = "The cat went to the sea. " * 12
    first = ask(client, text)
    second = ask(client, "Go on.", previous_response_id=first.id)
    whole = ask(client, [{"role": "user", "content": text}, {"role": "assistant", "content": first.output_text},
                         {"role": "user", "content": "Go on."}])
    assert second.output_text == whole.output_text and second.previous_response_id == first.id
    assert second.usage.input_tokens_details.cached_tokens >= 64
    third = ask(client, "More.", previous_response_id=second.id, stream=True)
    assert list(third)[-1].response.usage.input_tokens > second.usage.input_tokens


def test_responses_are_stored_for_their_owner(server, client):
    answer = ask(client)
    assert client.responses.retrieve(answer.id).output_text == answer.output_text
    stranger = server.client(api_key="other")
    with pytest.raises(openai.NotFoundError):
        stranger.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(stranger, previous_response_id=answer.id)
    assert caught.value.code == "previous_response_not_found"
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(ask(client, store=False).id)


def test_reasoning_is_an_item(thinking):
    fields = dict(model="thinker", max_output_tokens=40, temperature=1, reasoning={"effort": "low"},
                  extra_body={"seed": 1, "ignore_eos": True, "reasoning": {"max_tokens": 5}})
    answer = ask(thinking, **fields)
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    thought = answer.output[0].content[0].text
    assert thought and "</think>" not in thought + answer.output_text
    assert 5 <= answer.usage.output_tokens_details.reasoning_tokens < answer.usage.output_tokens
    events = list(ask(thinking, stream=True, **fields))
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == thought
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]
    again = [{"role": "user", "content": "Ann lives in Rome."}, *(item.model_dump() for item in answer.output), {"role": "user", "content": "Go on."}]
    stored = ask(thinking, "Go on.", previous_response_id=answer.id, **fields)
    assert ask(thinking, again, **fields).usage.input_tokens == stored.usage.input_tokens
    off = ask(thinking, model="thinker", reasoning={"effort": "none"}, extra_body={"ignore_eos": True})
    assert [item.type for item in off.output] == ["message"]


@pytest.mark.parametrize("fields, word", [
    ({"input": []}, "input"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
    ({"background": True}, "background"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"reasoning": {"effort": "much"}}, "effort"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temprature": 1}, "temprature"),
])
def test_errors_name_their_field(server, fields, word):
    status, body = server.post("/v1/responses", {"input": "x", **fields})
    assert status == 400 and body["error"]["type"] == "invalid_request_error" and word in body["error"]["message"]
