"""Embedding models and rerankers with the unmodified clients of OpenAI, LangChain, Ollama and Cohere."""

import json
import math
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))

from conftest import ROOT
from test_serve import Server

ENCODERS = ROOT / "testdata" / "tiny-encoders"
BERT = json.loads((ENCODERS / "bert" / "expected.json").read_text())
TEXTS, VECTORS = BERT["texts"][:3], BERT["embeddings"][:3]


def near(got, want):
    return all(abs(x - y) < 5e-4 for x, y in zip(got, want, strict=True))


@pytest.fixture(scope="module")
def server():
    server = Server(ENCODERS / "bert", ENCODERS / "reranker")
    yield server
    assert server.stop() == 0


def test_openai_embeds(server):
    openai = pytest.importorskip("openai", reason="SKIPPED: openai is not installed")
    client = server.client()
    # The client requests base64 by default.
    answer = client.embeddings.create(model="bert", input=TEXTS)
    assert all(near(entry.embedding, want) for entry, want in zip(answer.data, VECTORS, strict=True))
    assert answer.usage.prompt_tokens == sum(BERT["tokens"][:3])
    short = client.embeddings.create(model="bert", input=TEXTS[0], dimensions=8, encoding_format="float").data[0].embedding
    assert len(short) == 8 and abs(sum(x * x for x in short) - 1) < 1e-5
    query = client.embeddings.create(model="bert", input=TEXTS[0], extra_body={"prompt_name": "query"}).data[0].embedding
    assert near(query, BERT["query"])
    with pytest.raises(openai.BadRequestError, match="truncate"):
        client.embeddings.create(model="bert", input="x " * 200)
    with pytest.raises(openai.NotFoundError, match="needs a language model"):
        client.chat.completions.create(model="bert", messages=[{"role": "user", "content": "Hi"}])


def test_langchain_embeds(server):
    package = pytest.importorskip("langchain_openai", reason="SKIPPED: langchain-openai is not installed")
    # The checks of lengths use OpenAI's tokenizer.
    embeddings = package.OpenAIEmbeddings(base_url=server.url + "/v1", api_key="any", model="bert", check_embedding_ctx_length=False)
    assert all(near(got, want) for got, want in zip(embeddings.embed_documents(TEXTS), VECTORS, strict=True))
    assert near(embeddings.embed_query(TEXTS[1]), VECTORS[1])


def test_ollama_embeds(server):
    ollama = pytest.importorskip("ollama", reason="SKIPPED: ollama is not installed")
    client = ollama.Client(host=server.url)
    answer = client.embed("bert", TEXTS)
    assert all(near(got, want) for got, want in zip(answer.embeddings, VECTORS, strict=True)) and answer.prompt_eval_count > 0
    assert len(client.embed("bert", "x " * 200, dimensions=8).embeddings[0]) == 8
    assert client.show("bert").capabilities == ["embedding"]
    with pytest.raises(ollama.ResponseError, match="needs a language model"):
        client.generate("bert", "Hi")


def test_cohere_ranks(server):
    cohere = pytest.importorskip("cohere", reason="SKIPPED: cohere is not installed")
    want = json.loads((ENCODERS / "reranker" / "expected.json").read_text())
    (query, document), score = want["pairs"][0], 1 / (1 + math.exp(-want["logits"][0]))
    documents = ["x", document, "The rain in the hills"]
    results = cohere.ClientV2("any", base_url=server.url).rerank(model="reranker", query=query, documents=documents).results
    assert sorted(result.index for result in results) == [0, 1, 2]
    assert [result.relevance_score for result in results] == sorted((r.relevance_score for r in results), reverse=True)
    assert abs(next(result.relevance_score for result in results if result.index == 1) - score) < 5e-4
    best = cohere.ClientV2("any", base_url=server.url).rerank(model="reranker", query=query, documents=documents, top_n=1).results
    assert [result.index for result in best] == [results[0].index]
    with pytest.raises(cohere.errors.NotFoundError, match="needs a reranker"):
        cohere.ClientV2("any", base_url=server.url).rerank(model="bert", query=query, documents=documents)
