"""What clients of OpenAI's API rely on: schemas, tools, log-probabilities, origins, headers and the shutdown of the server."""

import gzip
import http.client
import json
import re
import signal
import threading
import time
import urllib.error
import urllib.request

import pytest

from conftest import scrimp
from test_serve import Server, complete, model  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def server(model):  # noqa: F811
    server = Server(model, "--kv-format", "f32", "--host", "localhost", "--cors", "https://app.example.org/")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def chat(server, messages="Hi", **fields):
    """(status, JSON) of a chat."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 60, "temperature": 1, **fields})


# --- constrained answers

PERSON = {
    "$defs": {"Address<str>": {"type": "object", "properties": {"street": {"type": "string", "maxLength": 4}}, "required": ["street"]}},
    "type": "object",
    "properties": {"age": {"type": "integer"}, "home": {"$ref": "#/$defs/Address%3Cstr%3E"}, "path": {"enum": ["/"], "format": "path"}},
    "required": ["age", "home", "path"],
}


@pytest.mark.parametrize("response_format", [
    {"type": "json_schema", "json_schema": {"name": "Person", "schema": PERSON}},
    {"type": "json_schema", "json_schema": {"name": "Person", "strict": True, "schema": PERSON}},
    {"type": "json_object", "schema": PERSON},
], ids=["schema", "strict", "object"])
def test_a_schema_bounds_every_answer(server, response_format):
    # The weights are random: whatever the grammar allows happens.
    for seed in range(4):
        status, answer = chat(server, response_format=response_format, max_tokens=200, seed=seed)
        assert status == 200, answer
        choice = answer["choices"][0]
        said = json.loads(choice["message"]["content"])
        assert choice["finish_reason"] == "stop"
        assert list(said) == ["age", "home", "path"] and list(said["home"]) == ["street"] and abs(said["age"]) < 10**20


GBNF = 'root ::= "<" item ("," item)* ">"\nitem ::= [a-c] | "(" item ")"'


@pytest.mark.parametrize("fields, pattern", [
    ({"guided_regex": "[0-9]{3}-[a-f]{2}"}, "[0-9]{3}-[a-f]{2}"),
    ({"structured_outputs": {"choice": ["yes", "no", "a/b"]}}, "yes|no|a/b"),
    ({"grammar": "root ::= word{2} [.!]\nword ::= \"ab\" | \"c\""}, "(ab|c){2}[.!]"),
    ({"guided_grammar": "start: /[xy]+/ \";\""}, "[xy]+;"),
    ({"grammar": GBNF, "max_tokens": 400}, r"<[a-c()]+(,[a-c()]+)*>"),
], ids=["regex", "choice", "gbnf", "lark", "recursive"])
@pytest.mark.parametrize("path", ["chat", "completions", "messages", "ollama"])
def test_a_grammar_bounds_every_answer(server, path, fields, pattern):
    paths = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "messages": "/v1/messages", "ollama": "/api/generate"}
    text = {"completions": {"prompt": "Hi"}, "ollama": {"prompt": "Hi", "model": "tiny-chat", "stream": False}}
    for seed in range(2):
        body = {"max_tokens": 120, "temperature": 1, "seed": seed, **text.get(path, {"messages": [{"role": "user", "content": "Hi"}]}), **fields}
        if path == "ollama":
            body["options"] = {"num_predict": body.pop("max_tokens"), "seed": seed, "temperature": 1,
                               **{name: body.pop(name) for name in fields if name in body}}
        status, answer = server.post(paths[path], body)
        assert status == 200, answer
        said = {"chat": lambda: answer["choices"][0]["message"]["content"], "completions": lambda: answer["choices"][0]["text"],
                "messages": lambda: answer["content"][0]["text"], "ollama": lambda: answer["response"]}[path]()
        is_whole = path == "ollama" and answer["done_reason"] == "stop" or path != "ollama"
        assert re.fullmatch(pattern, said) or not is_whole or len(said) > 100, said


def test_grammars_exclude_each_other(server):
    for fields in ({"guided_regex": "a", "grammar": GBNF}, {"guided_regex": "a", "response_format": {"type": "json_object"}}):
        status, answer = chat(server, **fields)
        assert status == 400 and "several grammars" in answer["error"]["message"]
    for fields, word in (({"grammar": "root ::= ("}, "line 1"), ({"guided_regex": "("}, "cannot be enforced"), ({"guided_choice": [5]}, "guided_choice")):
        status, answer = chat(server, **fields)
        assert status == 400 and word in answer["error"]["message"], answer


def test_required_tools_have_their_definitions(server):
    tree = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]}
    tools = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in (("person", PERSON), ("tree", tree))]
    for choice in ("required", *({"type": "function", "function": {"name": name}} for name in ("person", "tree"))):
        status, answer = chat(server, tools=tools, tool_choice=choice, max_tokens=300, seed=3)
        assert status == 200, answer
        call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
        arguments = json.loads(call["arguments"])
        assert list(arguments) == (["age", "home", "path"] if call["name"] == "person" else ["next"])
        # A root reference is the tool's own schema, and not the schema around all tools.
        assert call["name"] == "person" or arguments["next"] is None or list(arguments["next"]) == ["next"]


@pytest.mark.parametrize("schema, word", [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"$ref": "https://example.org/x.json"}, "https://example.org/x.json"),
])
def test_refusals_name_the_part_of_the_schema(server, schema, word):
    status, answer = chat(server, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert status == 400 and word in answer["error"]["message"] and "coerce" not in answer["error"]["message"]


# --- messages

def test_unknown_roles_are_named(server):
    status, answer = chat(server, [{"role": "user", "content": "a"}, {"role": "narrator", "content": "b"}])
    assert status == 400 and answer["error"]["param"] == "messages"
    assert all(word in answer["error"]["message"] for word in ("messages[1]", "narrator", "developer", "assistant", "tool"))


def tokens(server, messages, **fields):
    status, answer = server.post("/tokenize", {"messages": messages, **fields})
    assert status == 200, answer
    return server.post("/detokenize", {"tokens": answer["tokens"]})[1]["prompt"]


def test_every_message_is_part_of_the_prompt(server):
    history = [
        {"role": "developer", "content": "Be BRIEF."},
        {"role": "user", "content": [{"type": "text", "text": "2+3?"}, {"type": "text", "text": "Quick."}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 2}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "FIVE"},
        {"role": "assistant", "content": "It is", "tool_calls": None},
    ]
    prompt = tokens(server, history, tools=[{"type": "function", "function": {"name": "add"}}])
    for part in ("Be BRIEF.", "2+3?\nQuick.", "add", "FIVE"):
        assert part in prompt
    assert prompt.endswith("It is")
    assert not tokens(server, history, continue_final_message=False).endswith("It is")


# --- log-probabilities

def test_echo_scores_the_prompt(client):
    prompt = "The cat went to the sea. " * 12
    said = complete(client, prompt, max_tokens=6, logprobs=2)
    whole = complete(client, prompt + said.choices[0].text, max_tokens=0, echo=True, logprobs=2).choices[0]
    assert whole.text == prompt + said.choices[0].text and whole.finish_reason == "length"
    probabilities = whole.logprobs
    assert probabilities.token_logprobs[0] is None and probabilities.top_logprobs[0] is None
    assert len(probabilities.tokens) == len(probabilities.token_logprobs) == len(probabilities.text_offset)
    assert all(value <= 0 for value in probabilities.token_logprobs[1:])
    # Tokens of the prompt have the probabilities that they had as tokens of an answer.
    if "".join(probabilities.tokens).endswith(said.choices[0].text):
        for echoed, generated in zip(probabilities.token_logprobs[-6:], said.choices[0].logprobs.token_logprobs):
            assert abs(echoed - generated) < 1e-3
    for token, top, value in list(zip(probabilities.tokens, probabilities.top_logprobs, probabilities.token_logprobs))[1:]:
        assert abs(top[token] - value) < 1e-6
    for offset, token in zip(probabilities.text_offset, probabilities.tokens):
        if token.strip().isalpha():
            assert whole.text[offset:].lstrip().startswith(token.strip())


def test_echo_is_the_same_in_a_stream(client):
    for more in ({"logprobs": 1}, {}):
        fields = {"echo": True, "max_tokens": 3, "temperature": 0, **more}
        whole = complete(client, "The rain", **fields).choices[0]
        chunks = list(complete(client, "The rain", stream=True, **fields))
        assert "".join(c.choices[0].text for c in chunks) == whole.text
        if more:
            joined = [x for c in chunks if c.choices[0].logprobs for x in c.choices[0].logprobs.token_logprobs]
            offsets = [x for c in chunks if c.choices[0].logprobs for x in c.choices[0].logprobs.text_offset]
            assert (joined, offsets) == (whole.logprobs.token_logprobs, whole.logprobs.text_offset)


# --- requests of common clients

@pytest.mark.parametrize("fields", [
    {"functions": [], "function_call": "", "audio": None, "web_search_options": {}},
    {"prompt_cache_retention": "24h", "prompt_cache_key": "k", "store": False, "metadata": {"a": "b"}, "service_tier": "auto"},
    {"use_beam_search": False, "skip_special_tokens": False, "enable_thinking": False}, {"top_p": 0}, {"top_logprobs": 0, "logprobs": False}, {"n": 1.0, "max_tokens": 5.0, "seed": 3.0}, {"parallel_tool_calls": False, "tools": []},
], ids=str)
def test_harmless_fields_are_accepted(server, fields):
    status, answer = chat(server, **fields)
    assert status == 200, answer


def test_an_empty_suffix_is_none(server):
    assert server.post("/v1/completions", {"prompt": "x", "suffix": "", "max_tokens": 2})[0] == 200
    status, answer = server.post("/v1/completions", {"prompt": "x", "suffix": "y"})
    assert status == 400 and answer["error"]["param"] == "suffix", "this model has no tokens for it"


def test_a_text_is_filled_in_before_the_suffix(tiny_copy):
    """The last tokens of the vocabulary become those of `<|fim_prefix|>PROMPT<|fim_suffix|>SUFFIX<|fim_middle|>`."""
    directory = tiny_copy("qwen2")
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    last = sorted(vocab, key=vocab.get)[-3:]
    for token, content in zip(last, ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")):
        tokenizer["added_tokens"].append({"id": vocab.pop(token), "content": content, "special": True, "single_word": False,
                                          "lstrip": False, "rstrip": False, "normalized": False})
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in tokenizer["model"]["merges"]]
    tokenizer["model"]["merges"] = [pair for pair in pairs if "".join(pair) not in last]
    path.write_text(json.dumps(tokenizer))
    server = Server(directory, "--kv-format", "f32")

    def answer(prompt, **fields):
        status, answer = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0, **fields})
        assert status == 200, answer
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]

    by_hand = answer("<|fim_prefix|>the rain<|fim_suffix|> hills<|fim_middle|>")
    assert answer("the rain", suffix=" hills") == by_hand
    assert by_hand[1] == answer("the rain")[1] + answer(" hills")[1] + 3
    assert answer(["the rain"], suffix=" river") != by_hand
    assert server.stop() == 0


def test_headers_are_independent_of_case(model):  # noqa: F811
    server = Server(model, "--api-key", "secret")
    for scheme in ("Bearer", "bearer", "BEARER"):
        for kind in ("application/json", "Application/JSON; charset=UTF-8"):
            assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, **{"Authorization": f"{scheme} secret", "Content-Type": kind})[0] == 200
    for other in ("Basic secret", "secret", "Bearer", "Bearersecret"):
        assert server.post("/v1/completions", {"prompt": "x"}, Authorization=other)[0] == 401
    status, answer = server.post("/v1/completions", gzip.compress(b'{"prompt": "x"}'), **{"Authorization": "Bearer secret", "Content-Encoding": "gzip"})
    assert status == 415 and "Content-Encoding" in answer["error"]["message"]
    assert server.stop() == 0


# --- origins

def preflight(server, origin, headers):
    connection = http.client.HTTPConnection(*server.address, timeout=10)
    connection.request("OPTIONS", "/v1/chat/completions", headers={
        "Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": headers})
    answer = connection.getresponse()
    answer.read()
    return answer.headers


def test_pages_of_named_origins_may_call(server, model):  # noqa: F811
    wanted = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
    answer = preflight(server, "https://app.example.org", wanted)
    assert answer["Access-Control-Allow-Origin"] == "https://app.example.org"
    assert set(answer["Access-Control-Allow-Headers"].split(",")) == set(wanted.split(","))
    assert preflight(server, "https://other.example.org", wanted)["Access-Control-Allow-Origin"] is None
    everywhere = Server(model, "--cors", "*")
    assert preflight(everywhere, "https://any.example.org", wanted)["Access-Control-Allow-Origin"] == "*"
    assert everywhere.stop() == 0


def test_texts_that_are_no_origins_are_named(model):  # noqa: F811
    for origin in ("example.org", "https://example.org/page", "https://*.example.org"):
        scrimp("serve", model, "--port", 0, "--cors", origin).refused(origin, "https://example.org:8443")


# --- shutdown

def test_new_requests_get_503_during_the_shutdown(model):  # noqa: F811
    server = Server(model, "--drain", 20)
    kept = http.client.HTTPConnection(*server.address, timeout=10)
    kept.request("GET", "/ready")
    assert kept.getresponse().read() == b"ready\n"
    body = json.dumps({"prompt": "The cat", "max_tokens": 1500, "ignore_eos": True, "stream": True}).encode()
    request = urllib.request.Request(server.url + "/v1/completions", body, {"Content-Type": "application/json"})
    stream = urllib.request.urlopen(request, timeout=60)
    stream.readline()
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 10
    while True:
        # On the kept connection and on new ones.
        kept.request("GET", "/ready")
        first = kept.getresponse()
        first.read()
        if first.status == 503 or time.monotonic() > deadline:
            break
    assert first.status == 503
    try:
        status, answer = server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
        assert status == 503 and answer["error"]["code"] == "shutdown"
    except (ConnectionError, urllib.error.URLError):
        assert server.process.wait(timeout=30) == 0, "only a server that has ended refuses connections"
    rest = stream.read()
    assert b"[DONE]" in rest and server.process.wait(timeout=30) == 0


# --- simultaneous requests

def test_simultaneous_answers_equal_those_alone(model):  # noqa: F811
    """Prompts of several chunks, one of them with a cached prefix."""
    server = Server(model, "--max-step-tokens", 128)
    client = server.client()
    prompts = [word * 90 for word in ("The cat went ", "All the king ", "Down the rabbit ")]
    alone = Server(model, "--no-prefix-caching")
    want = [complete(alone.client(), prompt, max_tokens=24).choices[0].text for prompt in prompts]
    assert alone.stop() == 0
    for _ in range(2):
        got = [None] * 3

        def ask(i, got=got):
            got[i] = complete(client, prompts[i], max_tokens=24).choices[0].text

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert got == want
    assert server.stop() == 0

