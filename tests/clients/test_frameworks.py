"""LlamaIndex, LiteLLM and the `llm` tool as their users call them. The model has random weights, so the structure of an answer
is tested and its content is not.

The libraries are optional packages (requirements.txt): without one, its tests are skipped."""

import json
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))

from test_serve import Server, model  # noqa: F401 (a fixture)

pydantic = pytest.importorskip("pydantic", reason="SKIPPED: pydantic is not installed")


@pytest.fixture(scope="module")
def server(model):  # noqa: F811
    server = Server(model, "--kv-format", "f32", "--served-model-name", "tiny-chat")
    yield server
    assert server.stop() == 0


class Look(pydantic.BaseModel):
    """Looks at a place."""
    deep: bool


WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": {
    "type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]}}}


# --- LlamaIndex

@pytest.fixture(scope="module")
def llama_index(server):
    package = pytest.importorskip("llama_index.llms.openai_like", reason="SKIPPED: llama-index-llms-openai-like is not installed")
    return package.OpenAILike(model="tiny-chat", api_base=server.url + "/v1", api_key="any", is_chat_model=True, is_function_calling_model=True,
                              context_window=2048, max_tokens=40, temperature=0, max_retries=0)


def test_llama_index_chats_and_streams(llama_index):
    from llama_index.core.llms import ChatMessage
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Ann lives in Rome.")]
    whole = llama_index.chat(messages)
    assert whole.message.role == "assistant" and whole.raw.usage.completion_tokens > 0
    streamed = list(llama_index.stream_chat(messages))
    assert streamed[-1].message.content == whole.message.content == "".join(chunk.delta or "" for chunk in streamed)
    assert isinstance(llama_index.complete("The cat").text, str)


def test_llama_index_returns_structures(server, llama_index):
    package = pytest.importorskip("llama_index.llms.openai_like", reason="SKIPPED: llama-index-llms-openai-like is not installed")
    llm = package.OpenAILike(**{**llama_index.model_dump(exclude={"class_name"}), "max_tokens": 300, "temperature": 1,
                                "additional_kwargs": {"seed": 1, "tool_choice": "required"}, "api_key": "any"})
    from llama_index.core.prompts import PromptTemplate
    assert isinstance(llm.structured_predict(Look, PromptTemplate("Look at {place}."), place="Rome"), Look)


# --- LiteLLM

@pytest.fixture(scope="module")
def litellm():
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    package = pytest.importorskip("litellm", reason="SKIPPED: litellm is not installed")
    package.telemetry = False
    return package


@pytest.mark.parametrize("provider, path", [("openai", "/v1"), ("hosted_vllm", "/v1"), ("anthropic", ""), ("ollama_chat", "")])
def test_litellm_chats_and_streams(litellm, server, provider, path):
    asked = dict(model=f"{provider}/tiny-chat", api_base=server.url + path, api_key="any", max_tokens=16, temperature=0, num_retries=0,
                 messages=[{"role": "user", "content": "Ann lives in Rome."}])
    whole = litellm.completion(**asked)
    assert whole.choices[0].finish_reason in ("stop", "length") and whole.usage.completion_tokens > 0
    text = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True))
    assert text == whole.choices[0].message.content


def test_litellm_calls_tools_and_passes_fields(litellm, server):
    answer = litellm.completion(model="openai/tiny-chat", api_base=server.url + "/v1", api_key="any", max_tokens=300, temperature=1, seed=1,
                                messages=[{"role": "user", "content": "Is Rome warm?"}], tools=[WEATHER], tool_choice="required")
    call = answer.choices[0].message.tool_calls[0].function
    assert call.name == "weather" and isinstance(json.loads(call.arguments)["warm"], bool)
    small = litellm.completion(model="openai/tiny-chat", api_base=server.url + "/v1", api_key="any", max_tokens=4,
                               messages=[{"role": "user", "content": "The cat went to the sea. " * 40}], extra_body={"kv_shrink": 8})
    assert small.usage.kv_bytes < small.usage.kv_bytes_full
    vector = litellm.embedding(model="openai/tiny-chat", api_base=server.url + "/v1", api_key="any", input=["a cat"], encoding_format="float")
    assert len(vector.data[0]["embedding"]) > 8


def test_litellm_maps_errors(litellm, server):
    with pytest.raises(litellm.exceptions.ContextWindowExceededError):
        litellm.completion(model="openai/tiny-chat", api_base=server.url + "/v1", api_key="any", max_tokens=4, num_retries=0,
                           messages=[{"role": "user", "content": "word " * 30_000}])
    with pytest.raises(litellm.exceptions.NotFoundError):
        litellm.completion(model="openai/other", api_base=server.url + "/v1", api_key="any", num_retries=0, messages=[{"role": "user", "content": "a"}])


# --- the llm tool

@pytest.fixture(scope="module")
def llm(server, tmp_path_factory):
    """A function that runs the tool with the server as an extra model."""
    pytest.importorskip("llm", reason="SKIPPED: llm is not installed")
    folder = tmp_path_factory.mktemp("llm")
    models = [{"model_id": "tiny", "model_name": "tiny-chat", "api_base": server.url + "/v1", "api_key_name": "tiny", "can_stream": True,
               "supports_schema": True, "supports_tools": True}]
    # JSON is YAML.
    (folder / "extra-openai-models.yaml").write_text(json.dumps(models))

    from click.testing import CliRunner
    from llm.cli import cli

    def run(*arguments, stdin=""):
        # In this process: the tool's start takes seconds.
        done = CliRunner(env={"LLM_USER_PATH": str(folder)}).invoke(cli, arguments, input=stdin)
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    run("keys", "set", "tiny", "--value", "any")
    return run


def test_llm_streams_and_continues_a_conversation(llm):
    asked = ["-m", "tiny", "-o", "temperature", "0", "-o", "max_tokens", "12", "-s", "Be brief."]
    whole = llm(*asked, "--no-stream", "Ann lives in Rome.")
    assert llm(*asked, "Ann lives in Rome.") == whole
    llm(*asked, "-c", "Where does she live?")
    logged = json.loads(llm("logs", "list", "--json", "-n", "1"))
    assert logged[0]["prompt"] == "Where does she live?" and logged[0]["model"] == "tiny"


def test_llm_requests_a_schema(llm):
    answer = llm("-m", "tiny", "-o", "max_tokens", "300", "-o", "seed", "1", "--schema", "deep bool", stdin="Look at Rome.")
    assert isinstance(json.loads(answer)["deep"], bool)
