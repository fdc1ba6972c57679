"""Embedding models and rerankers in `scrimp serve`: the numbers of transformers (`testdata/tiny-encoders`), the shapes of
OpenAI's, Cohere's, vLLM's and Ollama's APIs, and errors that name the models of the server."""

import base64
import concurrent.futures
import json
import math
import struct
import urllib.request

import pytest

from conftest import ROOT, TINY, scrimp
from test_serve import Server

ENCODERS = ROOT / "testdata" / "tiny-encoders"
CLOSE = {"abs": 5e-4}


def expected(name):
    return json.loads((ENCODERS / name / "expected.json").read_text())


@pytest.fixture(scope="module")
def server():
    """A chat model, an embedding model and a reranker."""
    server = Server(TINY / "llama", ENCODERS / "bert", ENCODERS / "reranker", "--kv-format", "f32")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def alone():
    """Only an embedding model."""
    server = Server(ENCODERS / "bert")
    yield server
    assert server.stop() == 0


def get(server, path):
    with urllib.request.urlopen(server.url + path, timeout=30) as answer:
        return json.loads(answer.read())


def embed(server, texts, **fields):
    status, answer = server.post("/v1/embeddings", {"input": texts, **fields})
    assert status == 200, answer
    return answer


def vectors(answer):
    return [entry["embedding"] for entry in answer["data"]]


@pytest.mark.parametrize("name", ["bert", "roberta", "nomic", "gemma", "qwen3"])
def test_embeddings_are_those_of_transformers(name):
    want = expected(name)
    server = Server(ENCODERS / name, "--kv-format", "f32")
    answer = embed(server, want["texts"], truncate=True)
    assert answer["model"] == str(ENCODERS / name) and [entry["index"] for entry in answer["data"]] == list(range(len(want["texts"])))
    for got, numbers in zip(vectors(answer), want["embeddings"], strict=True):
        assert got == pytest.approx(numbers, **CLOSE)
    assert answer["usage"] == {"prompt_tokens": sum(want["tokens"]), "total_tokens": sum(want["tokens"])}
    assert vectors(embed(server, want["texts"][0], prompt_name="query"))[0] == pytest.approx(want["query"], **CLOSE)
    command = scrimp("embed", ENCODERS / name, want["texts"][0], "--json").json()[0]["embedding"]
    # The command's decoders keep their cache in bf16.
    assert vectors(answer)[0] == pytest.approx(command, abs=1e-2)
    assert server.stop() == 0


def test_base64_and_dimensions(server):
    want = expected("bert")
    whole = embed(server, want["texts"][:2], model="bert", encoding_format="base64")
    raw = [base64.b64decode(text) for text in vectors(whole)]
    numbers = [struct.unpack(f"<{len(bytes_) // 4}f", bytes_) for bytes_ in raw]
    assert list(numbers[0]) == pytest.approx(want["embeddings"][0], **CLOSE)
    short = vectors(embed(server, want["texts"][0], dimensions=8))[0]
    length = math.sqrt(sum(x * x for x in numbers[0][:8]))
    assert short == pytest.approx([x / length for x in numbers[0][:8]], abs=1e-6)
    status, answer = server.post("/v1/embeddings", {"input": "a", "dimensions": 33})
    assert status == 400 and answer["error"]["param"] == "dimensions"


def test_long_texts_are_errors_unless_they_may_be_cut(server):
    long = "The rain in the hills. " * 40
    status, answer = server.post("/v1/embeddings", {"input": ["a", long]})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded") and "input 1" in answer["error"]["message"]
    assert len(vectors(embed(server, ["a", long], truncate=True))) == 2
    status, answer = server.post("/api/embed", {"model": "bert", "input": long})
    assert status == 200 and len(answer["embeddings"]) == 1
    status, answer = server.post("/api/embed", {"model": "bert", "input": long, "truncate": False})
    assert status == 400 and "truncate" in answer["error"]


def test_simultaneous_requests_have_the_answers_of_single_ones(alone):
    texts = [f"The {word} in the hills" for word in ("rain", "cat", "king", "sea", "wood", "town", "wind", "road")]
    single = [vectors(embed(alone, text))[0] for text in texts]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        many = list(pool.map(lambda i: vectors(embed(alone, texts[i % 8:] if i % 3 == 0 else texts[i % 8])), range(64)))
    for i, got in enumerate(many):
        assert got == (single[i % 8:] if i % 3 == 0 else [single[i % 8]])
    assert alone.metric("embedded_texts_total") > 64 and alone.metric("prompt_tokens_total") > 64


def test_a_request_has_many_texts(alone):
    texts = [f"text {i % 40}" for i in range(2048)]
    found = vectors(embed(alone, texts))
    assert len(found) == 2048 and found[0] == found[40] == vectors(embed(alone, texts[0]))[0]
    status, answer = alone.post("/v1/embeddings", {"input": [*texts, "one more"]})
    assert status == 400 and "2048" in answer["error"]["message"]


def test_ollama_embeds_with_the_models_pooling(server):
    want = expected("bert")
    status, answer = server.post("/api/embed", {"model": "bert:latest", "input": want["texts"][:2]})
    assert status == 200 and answer["model"] == str(ENCODERS / "bert") and answer["prompt_eval_count"] == sum(want["tokens"][:2])
    assert answer["embeddings"][1] == pytest.approx(want["embeddings"][1], **CLOSE)
    status, answer = server.post("/api/embeddings", {"model": "bert", "prompt": want["texts"][0]})
    assert status == 200 and answer["embedding"] == pytest.approx(want["embeddings"][0], **CLOSE)
    status, answer = server.post("/api/embed", {"model": "bert", "input": want["texts"][0], "prompt_name": "query"})
    assert answer["embeddings"][0] == pytest.approx(want["query"], **CLOSE)
    status, shown = server.post("/api/show", {"model": "bert"})
    assert shown["capabilities"] == ["embedding"] and shown["model_info"]["bert.embedding_length"] == 32
    assert {"bert", "reranker", "llama"} <= {model["name"] for model in get(server, "/api/tags")["models"]}
    assert len(get(server, "/api/ps")["models"]) == 3


@pytest.fixture(scope="module")
def pairs():
    """(query, document, probability) of transformers."""
    want = expected("reranker")
    return [(*pair, 1 / (1 + math.exp(-logit))) for pair, logit in zip(want["pairs"], want["logits"], strict=True)]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_are_sorted_by_relevance(server, pairs, path):
    query, document, want = pairs[0]
    documents = ["x", {"text": document}, "The rain in the hills", "A king"]
    status, answer = server.post(path, {"model": "reranker", "query": query, "documents": documents, "return_documents": True})
    assert status == 200, answer
    results = answer["results"]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True) and sorted(result["index"] for result in results) == [0, 1, 2, 3]
    own = next(result for result in results if result["index"] == 1)
    assert own["relevance_score"] == pytest.approx(want, **CLOSE) and own["document"] == {"text": document}
    assert answer["usage"]["total_tokens"] > 8 and answer["model"].endswith("reranker")
    status, answer = server.post(path, {"query": query, "documents": documents, "top_n": 2})
    assert [r["index"] for r in answer["results"]] == [r["index"] for r in results[:2]] and "document" not in answer["results"][0]
    assert server.metric("ranked_documents_total") >= 8


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_pairs_have_scores_in_their_order(server, pairs, path):
    first, second, want = (list(column) for column in zip(*pairs, strict=True))
    status, answer = server.post(path, {"text_1": first, "text_2": second})
    assert status == 200 and answer["object"] == "list"
    assert [entry["index"] for entry in answer["data"]] == list(range(len(pairs)))
    assert [entry["score"] for entry in answer["data"]] == pytest.approx(want, **CLOSE)
    status, answer = server.post(path, {"model": "reranker", "text_1": first[0], "text_2": [second[0], "x"]})
    assert len(answer["data"]) == 2 and answer["data"][0]["score"] == pytest.approx(want[0], **CLOSE)
    status, answer = server.post(path, {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]})
    assert status == 400 and answer["error"]["param"] == "text_1"


CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.mark.parametrize("path, body", [
    ("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "Hi"}), ("/v1/messages", CHAT), ("/v1/responses", {"input": "Hi"}),
    ("/tokenize", {"prompt": "Hi"}), ("/v1/rerank", {"query": "a", "documents": ["b"]}), ("/v1/score", {"text_1": "a", "text_2": "b"}),
    ("/api/chat", {"model": "bert", **CHAT}), ("/api/generate", {"model": "bert", "prompt": "Hi"}),
])
def test_a_path_without_its_model_names_the_models(alone, path, body):
    status, answer = alone.post(path, body)
    message = answer["error"] if isinstance(answer["error"], str) else answer["error"]["message"]
    needed = "a reranker" if path in ("/v1/rerank", "/v1/score") else "a language model"
    assert status == 404 and f"needs {needed}" in message and "bert" in message and "/v1/embeddings" in message, message


def test_names_select_a_model_of_the_right_kind(server):
    assert server.post("/v1/chat/completions", {**CHAT, "model": "llama"})[0] == 200
    for path, model, body, able in [
        ("/v1/chat/completions", "bert", CHAT, "llama"), ("/v1/embeddings", "reranker", {"input": "a"}, "bert"),
        ("/v1/rerank", "llama", {"query": "a", "documents": ["b"]}, "reranker"),
    ]:
        status, answer = server.post(path, {**body, "model": model})
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_supported", "model")
        assert f'"{able}"' in answer["error"]["message"] and f'"{model}" is' in answer["error"]["message"]
    status, answer = server.post("/v1/embeddings", {"input": "a", "model": "nothing"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found") and '"bert"' in answer["error"]["message"]
    # Without a name, texts go to the embedding model; the language model embeds by name.
    assert len(vectors(embed(server, "a"))[0]) == 32
    assert embed(server, "a", model="llama")["model"] == str(TINY / "llama")


def test_lists_and_health_without_a_chat_model(alone):
    models = get(alone, "/v1/models")["data"]
    assert {(model["id"], model["task"], model["max_model_len"]) for model in models} == {(str(ENCODERS / "bert"), "embed", 48), ("bert", "embed", 48)}
    for path in ("/health", "/ready", "/"):
        with urllib.request.urlopen(alone.url + path, timeout=10) as answer:
            assert answer.status == 200
    assert alone.metric("num_requests_running") == 0


@pytest.mark.parametrize("body, word", [
    ({"input": [1, 2, 3]}, "token ids"), ({"input": ""}, "text"), ({"input": []}, "input"), ({"input": ["a", 5]}, "token ids"),
    ({"input": "a", "prompt_name": "passage"}, "query"), ({"input": "a", "encoding_format": "hex"}, "base64"), ({"input": "a", "dims": 3}, "dims"),
])
def test_bad_requests_for_embeddings_are_explained(alone, body, word):
    status, answer = alone.post("/v1/embeddings", body)
    assert status == 400 and word in answer["error"]["message"], answer


def test_a_server_has_one_model_of_each_kind():
    scrimp("serve", ENCODERS / "bert", ENCODERS / "nomic", "--port", 0).refused("second embedding model", status=2)
