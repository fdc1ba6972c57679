"""`scrimp serve` from a client: the unmodified openai package, and sockets that misbehave."""

import atexit
import concurrent.futures
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import openai
import pytest

from conftest import BINARY, TINY

PROMPTS = [f"The {word} went to the {place}" for word in ("cat", "queen", "rain", "king") for place in ("sea", "hill", "town", "wood")]


class Server:
    """A running `scrimp serve`."""

    def __init__(self, *arguments, env=None):
        self.process = subprocess.Popen([str(a) for a in (BINARY, "serve", *arguments, "--port", 0, "--json", "--log", "off")],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        # A test that fails does not stop it.
        atexit.register(self.process.kill)
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.url = json.loads(line)["url"]
        self.address = ("127.0.0.1", int(self.url.rsplit(":", 1)[1]))

    def client(self, **options):
        return openai.OpenAI(base_url=self.url + "/v1", max_retries=0, timeout=60, **{"api_key": "any", **options})

    def post(self, path, body, **headers):
        """(status, JSON) of a request."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())

    def metric(self, name):
        """A metric, added up over all models."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=10) as answer:
            text = answer.read().decode()
        samples = re.findall(rf"^scrimp:{name}(?:\{{.*\}})? (\S+)$", text, re.M)
        assert samples, f"{name} is not in\n{text}"
        return sum(map(float, samples))

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny Llama, with room for longer texts."""
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    shutil.copytree(TINY / "llama", folder)
    path = folder / "config.json"
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 2048}))
    return folder


@pytest.fixture(scope="module")
def server(model):
    server = Server(model, "--kv-format", "f32", "--max-seqs", 64)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def complete(client, prompt, **options):
    return client.completions.create(model="tiny-chat", prompt=prompt, max_tokens=options.pop("max_tokens", 12),
                                     temperature=options.pop("temperature", 0), **options)


# --- what clients do

def test_models(client):
    assert "tiny-chat" in [m.id for m in client.models.list()]


def test_chat_streams_what_it_says_at_once(client):
    asked = dict(model="tiny-chat", messages=[{"role": "user", "content": "Hello"}], max_tokens=16, temperature=0)
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_batched_answers_equal_those_alone(client):
    alone = [complete(client, p, max_tokens=20).choices[0].text for p in PROMPTS]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        together = list(pool.map(lambda p: complete(client, p, max_tokens=20).choices[0].text, PROMPTS * 4))
    assert together == alone * 4


def test_sampling_follows_its_seed(client):
    def say(seed):
        return [c.text for c in complete(client, "Once", n=3, temperature=1.5, seed=seed).choices]
    assert say(7) == say(7) != say(8)
    assert len(set(say(7))) > 1


def test_stops_and_limits(client):
    text = complete(client, "The cat", max_tokens=24, extra_body={"ignore_eos": True}).choices[0].text
    stop = text[5:8]
    stopped = complete(client, "The cat", max_tokens=24, stop=[stop], extra_body={"ignore_eos": True}).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text[:text.index(stop)], "stop")
    forced = complete(client, "The cat", max_tokens=9, extra_body={"min_tokens": 9})
    assert forced.usage.completion_tokens == 9 and forced.choices[0].finish_reason == "length"


def test_logprobs(client):
    answer = complete(client, "The cat", logprobs=3).choices[0].logprobs
    assert len(answer.tokens) == len(answer.token_logprobs) == 12
    for chosen, top in zip(answer.token_logprobs, answer.top_logprobs):
        assert chosen <= 0 and abs(max(top.values()) - chosen) < 1e-6, "greedy takes the best"
    chat = client.chat.completions.create(model="tiny-chat", messages=[{"role": "user", "content": "Hi"}], max_tokens=4,
                                          temperature=0, logprobs=True, top_logprobs=2)
    assert all(len(t.top_logprobs) == 2 for t in chat.choices[0].logprobs.content)


def test_json_of_a_schema(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2]}},
              "required": ["ok", "n"], "additionalProperties": False}
    for seed in range(3):
        answer = client.chat.completions.create(
            model="tiny-chat", messages=[{"role": "user", "content": "Say"}], max_tokens=200, temperature=1, seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
        said = json.loads(answer.choices[0].message.content)
        assert isinstance(said["ok"], bool) and said["n"] in (1, 2) and answer.choices[0].finish_reason == "stop"


def test_a_tool_that_must_be_called_is(client):
    tool = {"type": "function", "function": {"name": "look", "parameters": {
        "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}}}
    asked = dict(model="tiny-chat", messages=[{"role": "user", "content": "Look"}], tools=[tool], tool_choice="required",
                 max_tokens=200, temperature=1, seed=1)
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert call.function.name == "look" and isinstance(json.loads(call.function.arguments)["on"], bool)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    calls = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices[0].delta.tool_calls]
    assert [c.function.name for c in calls if c.function.name] == ["look"]
    # The arguments arrive while they are generated.
    deltas = [c.function.arguments for c in calls if c.function.arguments]
    assert len(deltas) > 2 and "".join(deltas) == call.function.arguments
    assert [c.choices[0].finish_reason for c in chunks][-1] == "tool_calls"


def test_drafts_change_no_answer(model):
    server = Server(model, "--kv-format", "f32", "--speculate", "ngram")
    client = server.client()
    fields = {"max_tokens": 80, "extra_body": {"ignore_eos": True}}
    off = {**fields, "extra_body": {**fields["extra_body"], "speculate": "off"}}
    prompts = [" ".join([prompt] * 4) for prompt in PROMPTS[:4]]
    for temperature in (0, 0.3):
        plain = [complete(client, prompt, temperature=temperature, seed=1, **off) for prompt in prompts]
        before = server.metric("spec_decode_num_draft_tokens_total")
        drafted = [complete(client, prompt, temperature=temperature, seed=1, **fields) for prompt in prompts]
        assert [answer.choices[0].text for answer in drafted] == [answer.choices[0].text for answer in plain]
        assert [answer.usage.completion_tokens for answer in drafted] == [80] * 4
        assert temperature > 0 or server.metric("spec_decode_num_draft_tokens_total") > before
    assert 0 < server.metric("spec_decode_num_accepted_tokens_total") <= server.metric("spec_decode_num_draft_tokens_total")
    before = server.metric("spec_decode_num_drafts_total")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: complete(client, prompt, temperature=0.3, seed=1, **fields), prompts))
    assert [answer.choices[0].text for answer in together] == [answer.choices[0].text for answer in plain]
    assert before > 0 and server.stop() == 0


def test_a_draft_model_changes_no_answer(model):
    server = Server(model, "--kv-format", "f32", "--speculate", model)
    client = server.client()
    for temperature in (0, 0.5):
        answers = [complete(client, PROMPTS[0], temperature=temperature, seed=1, max_tokens=60,
                            extra_body={"ignore_eos": True, **more}).choices[0].text
                   for more in ({}, {"speculate": "model"}, {"speculate": "ngram"}, {"speculate": "off"})]
        assert len(set(answers)) == 1
    assert server.stop() == 0


def test_a_draft_model_must_be_loaded(client):
    with pytest.raises(openai.BadRequestError, match="no draft model"):
        complete(client, "Hello", extra_body={"speculate": "model"})


def test_a_call_that_is_cut_has_the_reason_length(client):
    tool = {"type": "function", "function": {"name": "say", "parameters": {
        "type": "object", "properties": {"text": {"type": "string", "minLength": 200}}, "required": ["text"], "additionalProperties": False}}}
    asked = dict(model="tiny-chat", messages=[{"role": "user", "content": "Say"}], tools=[tool], tool_choice="required",
                 max_tokens=100, temperature=1, seed=1)
    choice = client.chat.completions.create(**asked).choices[0]
    said = choice.message.tool_calls[0].function.arguments
    assert choice.finish_reason == "length" and said.startswith('{"text":')
    chunks = list(client.chat.completions.create(**asked, stream=True))
    calls = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices[0].delta.tool_calls]
    assert "".join(c.function.arguments for c in calls) == said and chunks[-1].choices[0].finish_reason == "length"


def test_embeddings(client):
    a, b, c = (e.embedding for e in client.embeddings.create(model="tiny-chat", input=["The cat", "The cat", "Rain"]).data)
    assert a == b != c and abs(sum(x * x for x in a) - 1) < 1e-3


def test_a_prefix_is_kept(server, client):
    shared = "Down the rabbit hole she fell. " * 12
    first = complete(client, shared + "One")
    second = complete(client, shared + "Two")
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens >= 64
    assert second.choices[0].text == complete(client, shared + "Two").choices[0].text


def test_kv_options_of_a_request(client):
    prompt = "All the king's horses and all the king's men. " * 8
    whole = complete(client, prompt)
    small = complete(client, prompt, extra_body={"kv_budget": 40, "kv_policy": "snapkv", "kvcrush": 0.5})
    assert small.usage.kv_tokens < whole.usage.kv_tokens and small.usage.kv_bytes < whole.usage.kv_bytes


def test_tokenize_there_and_back(server):
    status, tokens = server.post("/tokenize", {"prompt": "The cat sat", "add_special_tokens": False})
    assert status == 200 and tokens["count"] == len(tokens["tokens"])
    assert server.post("/detokenize", {"tokens": tokens["tokens"]})[1]["prompt"].strip() == "The cat sat"


# --- what can be wrong

@pytest.mark.parametrize("body, status, word", [
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"\xff\xfe", 400, "JSON"),
    (b"[" * 100_000, 400, "JSON"),
    ({"prompt": "x", "temperature": "NaN"}, 400, "temperature"),
    (b'{"prompt": "x", "temperature": NaN}', 400, "JSON"),
    ({"prompt": "x", "max_tokens": -1}, 400, "max_tokens"),
    ({"prompt": "x", "temprature": 1}, 400, "temprature"),
    ({"prompt": "x", "model": "gpt-9"}, 404, "gpt-9"),
    ({"prompt": [1, 99_999_999]}, 400, "99999999"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": "word " * 100_000}, 400, "tokens"),
    ({"prompt": "x" * (5 << 20)}, 413, "larger"),
    ({}, 400, "prompt"),
])
def test_bad_requests_are_explained(server, body, status, word):
    got, answer = server.post("/v1/completions", body)
    assert got == status and word in answer["error"]["message"] and answer["error"]["type"], answer


def test_paths_and_methods(server):
    assert server.post("/v1/nothing", {})[0] == 404
    assert server.post("/health", {})[0] == 405
    assert server.post("/v1/completions", {"prompt": "x"}, **{"Content-Type": "text/plain"})[0] == 415
    with urllib.request.urlopen(server.url + "/", timeout=10) as page:
        assert b"scrimp" in page.read() and "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_requests_keep_their_identifiers(server):
    for path, status in (("/health", 200), ("/v1/nothing", 404)):
        for sent, kept in (("abc-1", True), ("two words", False), ("x" * 200, False), (None, False)):
            request = urllib.request.Request(server.url + path, headers={"X-Request-Id": sent} if sent else {})
            try:
                answer = urllib.request.urlopen(request, timeout=10)
            except urllib.error.HTTPError as e:
                answer = e
            found = answer.headers["X-Request-Id"]
            assert answer.status == status and (found == sent if kept else found.startswith("req_")), (sent, found)


def test_the_log_has_identifiers(model):
    process = subprocess.Popen([BINARY, "serve", model, "--port", "0", "--json", "--log", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = json.loads(process.stdout.readline())["url"]
    urllib.request.urlopen(urllib.request.Request(url + "/health", headers={"X-Request-Id": "mine"}), timeout=10).close()
    process.send_signal(signal.SIGTERM)
    lines = [json.loads(line) for line in process.communicate(timeout=30)[1].splitlines() if line.startswith("{")]
    found = [line for line in lines if line.get("request_id") == "mine"]
    assert len(found) == 1 and (found[0]["path"], found[0]["status"]) == ("/health", 200)


def test_holders_of_memory(server, client):
    def admin():
        with urllib.request.urlopen(server.url + "/admin", timeout=10) as answer:
            return json.loads(answer.read())
    complete(client, "The cat went to the sea. " * 20)
    memory = admin()
    held = memory["models"][0]
    assert held["task"] == "generate" and held["loaded"] and held["weight_bytes"] > 100_000
    assert held["kv"]["prefixes"] > 0 and held["kv"]["prefix_bytes"] == held["kv"]["bytes"] > 0 == held["kv"]["request_bytes"]
    assert held["draft_bytes"] == 0
    assert memory["process"]["rss_bytes"] > held["weight_bytes"] and held["accounted_bytes"] > held["kv"]["limit_bytes"]
    stream = client.completions.create(model="tiny-chat", prompt="The cat", max_tokens=1900, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    running = admin()["models"][0]
    assert running["requests"] == {"running": 1, "waiting": 0} and running["kv"]["request_bytes"] > 0 < running["kv"]["whole_bytes"]
    stream.close()


def test_large_heads_are_refused(server):
    with socket.create_connection(server.address, timeout=10) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 200_000 + b"\r\n\r\n")
        assert b" 431 " in s.recv(100)


def test_clients_that_vanish_leave_nothing_behind(model):
    server = Server(model, "--no-prefix-caching")
    body = json.dumps({"prompt": "The cat", "max_tokens": 200, "ignore_eos": True, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    for i in range(40):
        with socket.create_connection(server.address, timeout=10) as s:
            s.sendall(head % len(body) + body)
            if i % 2:
                s.recv(200)
    deadline = time.monotonic() + 20
    while server.metric("num_requests_running") + server.metric("kv_cache_bytes") > 0:
        assert time.monotonic() < deadline, "a request is still running, or pages are still held"
        time.sleep(0.1)
    assert complete(server.client(), "The cat").choices[0].finish_reason in ("stop", "length")
    assert server.stop() == 0


def test_a_slow_client_is_cut_off(model):
    server = Server(model, "--read-timeout", 1)
    with socket.create_connection(server.address, timeout=20) as s:
        s.sendall(b"POST /v1/completions HT")
        assert s.recv(100) in (b"",) or True
    with socket.create_connection(server.address, timeout=20) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in s.recv(100)
    assert server.stop() == 0


def test_keys(model, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsecret-1\nsecret-2\n")
    server = Server(model, "--api-key-file", keys)
    assert server.post("/v1/completions", {"prompt": "x"})[0] == 401
    with pytest.raises(openai.AuthenticationError):
        complete(server.client(api_key="secret-3"), "x")
    assert complete(server.client(api_key="secret-2"), "x").choices
    with urllib.request.urlopen(server.url + "/health", timeout=10) as health:
        assert health.status == 200
    assert server.stop() == 0


def test_a_full_queue_says_so(model):
    server = Server(model, "--max-seqs", 1, "--max-queue", 1)
    client = server.client()

    def ask(_):
        try:
            return complete(client, "The cat", max_tokens=150, extra_body={"ignore_eos": True}).usage.completion_tokens
        except openai.RateLimitError as e:
            assert e.response.headers["Retry-After"]
            return 429
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    assert set(answers) == {150, 429}
    assert server.stop() == 0


@pytest.mark.parametrize("pressure", ["preempt", "compress"])
def test_little_memory_delays_but_loses_nothing(model, pressure):
    free = Server(model, "--no-prefix-caching")
    want = [complete(free.client(), p * 3, max_tokens=60, extra_body={"ignore_eos": True}).choices[0].text for p in PROMPTS[:8]]
    free.stop()
    # Room for three or four of the eight.
    server = Server(model, "--kv-memory", "600KB", "--kv-pressure", pressure)
    client = server.client()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda p: complete(client, p * 3, max_tokens=60, extra_body={"ignore_eos": True}), PROMPTS[:8]))
    assert all(a.usage.completion_tokens == 60 for a in got)
    if pressure == "preempt":
        assert [a.choices[0].text for a in got] == want
    assert server.stop() == 0


def test_sigterm_lets_answers_end(model):
    server = Server(model)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(complete, server.client(), "The cat", max_tokens=150, extra_body={"ignore_eos": True})
        deadline = time.monotonic() + 10
        while server.metric("num_requests_running") == 0 and not answer.done() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert server.stop() == 0
        assert answer.result().usage.completion_tokens == 150


def test_a_configuration_file(model, tmp_path):
    config = tmp_path / "serve.toml"
    config.write_text(f'model = "{pathlib.Path(model)}"\nserved-model-name = "mine"\nkv-budget = 0.5\nmax-seqs = 4\n')
    server = Server("--config", config)
    assert server.client().models.list().data[0].id == "mine"
    assert server.stop() == 0
