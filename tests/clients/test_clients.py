"""openai, instructor, LangChain and lm-eval as their users call them. The model has random weights: answers are
constrained, so their structure is known and their content is not.

The libraries are optional packages (requirements.txt), in an environment of their own: without one, its tests are skipped."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Literal, Optional, Union

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))

from test_serve import Server, model  # noqa: F401 (a fixture)

pydantic = pytest.importorskip("pydantic", reason="SKIPPED: pydantic is not installed")

USER = [{"role": "user", "content": "Ann is 30 and lives at 5 Elm St, Rome."}]


@pytest.fixture(scope="module")
def server(model):  # noqa: F811
    server = Server(model, "--kv-format", "f32", "--served-model-name", "tiny-chat")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    return server.client()


class Address(pydantic.BaseModel):
    street: Literal["Elm St", "Oak Rd"]
    number: int


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = pydantic.Field(ge=0, le=9)


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    barks: bool


class Person(pydantic.BaseModel):
    """A person."""
    age: int
    address: Address
    pet: Union[Cat, Dog] = pydantic.Field(discriminator="kind")
    partner: Optional[Literal["Bob"]] = None


class Tree(pydantic.BaseModel):
    """A recursive structure."""
    leaf: bool
    next: Optional["Tree"]


class Look(pydantic.BaseModel):
    """Looks at an address."""
    at: Address
    deep: bool


# --- openai

def openai():
    return pytest.importorskip("openai", reason="SKIPPED: openai is not installed")


@pytest.mark.parametrize("wanted", [Person, Tree])
def test_openai_parses_models(client, wanted):
    too_long = openai().LengthFinishReasonError
    parsed = []
    for seed in range(4):
        try:
            answer = client.chat.completions.parse(model="tiny-chat", messages=USER, response_format=wanted, max_tokens=300,
                                                   temperature=1, seed=seed)
            parsed.append(answer.choices[0].message.parsed)
        except too_long:
            # Random weights can choose a deep tree.
            assert wanted is Tree
    assert (parsed or wanted is Tree) and all(isinstance(found, wanted) for found in parsed)


def test_openai_parses_function_tools(client):
    tool = openai().pydantic_function_tool(Look)
    answer = client.chat.completions.parse(model="tiny-chat", messages=USER, tools=[tool], tool_choice="required",
                                           max_tokens=300, temperature=1, seed=1)
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Look)


def test_openai_streams_a_parsed_answer(client):
    openai()
    with client.chat.completions.stream(model="tiny-chat", messages=USER, response_format=Look, max_tokens=300, temperature=1, seed=1) as stream:
        assert any(event.type == "content.delta" for event in stream)
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Look)


def test_openai_continues_with_a_tools_result(client):
    tool = openai().pydantic_function_tool(Look)
    messages = list(USER)
    first = client.chat.completions.create(model="tiny-chat", messages=messages, tools=[tool], tool_choice="required", max_tokens=300, seed=1)
    message = first.choices[0].message
    messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "A house."}]
    second = client.chat.completions.create(model="tiny-chat", messages=messages, tools=[tool], max_tokens=4)
    assert second.choices[0].finish_reason in ("stop", "length", "tool_calls")


# --- instructor

@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor_extracts(client, mode):
    instructor = pytest.importorskip("instructor", reason="SKIPPED: instructor is not installed")
    extract = instructor.from_openai(client, mode=getattr(instructor.Mode, mode)).chat.completions.create
    found = extract(model="tiny-chat", messages=USER, response_model=Look, max_tokens=400, temperature=1, seed=2, max_retries=0)
    assert isinstance(found, Look)


# --- LangChain

@pytest.fixture(scope="module")
def langchain(server):
    package = pytest.importorskip("langchain_openai", reason="SKIPPED: langchain-openai is not installed")
    return package.ChatOpenAI(base_url=server.url + "/v1", api_key="any", model="tiny-chat", max_tokens=300, temperature=1, seed=1, max_retries=0)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_langchain_returns_structures(langchain, method):
    assert isinstance(langchain.with_structured_output(Look, method=method).invoke("Look at 5 Elm St."), Look)


def test_langchain_calls_tools(langchain):
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
    bound = langchain.bind_tools([Look], tool_choice="any")
    question = [SystemMessage("Be brief."), HumanMessage("Look at 5 Elm St.")]
    answer = bound.invoke(question)
    assert isinstance(answer, AIMessage) and answer.tool_calls[0]["name"] == "Look"
    streamed = None
    for chunk in bound.stream(question):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls[0]["args"] == answer.tool_calls[0]["args"]
    after = langchain.bind_tools([Look]).bind(max_tokens=3).invoke([*question, answer, ToolMessage("A house.", tool_call_id=answer.tool_calls[0]["id"])])
    assert isinstance(after, AIMessage)


# --- lm-eval

TASK = """
task: ours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "
metric_list:
  - metric: acc
"""

QUESTIONS = [{"question": f"The {who} went to the", "choices": ["sea", "hills and the town", "rain"], "answer": i % 3}
             for i, who in enumerate(("cat", "king", "queen", "small river", "old town", "people"))]


def test_lm_eval_scores_as_the_probabilities_say(server, client, tmp_path):
    pytest.importorskip("lm_eval", reason="SKIPPED: lm-eval is not installed")

    def score(question, choice):
        """The log-probability of a choice, from the server itself."""
        n = server.post("/tokenize", {"prompt": question, "add_special_tokens": False})[1]["count"]
        ids = server.post("/tokenize", {"prompt": question + " " + choice, "add_special_tokens": False})[1]["tokens"]
        answer = client.completions.create(model="tiny-chat", prompt=ids, max_tokens=0, echo=True, logprobs=1)
        return sum(answer.choices[0].logprobs.token_logprobs[n:])

    right = 0
    for q in QUESTIONS:
        scores = [score(q["question"], choice) for choice in q["choices"]]
        right += scores.index(max(scores)) == q["answer"]
    (tmp_path / "data.json").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (tmp_path / "ours.yaml").write_text(TASK.format(data=tmp_path / "data.json"))
    arguments = f"model=tiny-chat,base_url={server.url}/v1/completions,tokenizer_backend=remote,max_length=512,num_concurrent=1"
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--tasks", "ours", "--include_path", tmp_path,
         "--model_args", arguments, "--output_path", tmp_path / "out"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OPENAI_API_KEY": "any"},
        capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(next(pathlib.Path(tmp_path / "out").rglob("results_*.json")).read_text())
    assert abs(result["results"]["ours"]["acc,none"] - right / len(QUESTIONS)) < 1e-9

