"""All three methods in one process on a real model: pruned weights, a crushed cache and a recommender, for many clients at once."""

import concurrent.futures
import json

import pytest

from conftest import TEXT, real_model, scrimp
from test_rec import clicks  # noqa: F401  (a fixture)
from test_serve import Server

KV = ("--kv-budget", "0.25", "--kv-policy", "snapkv", "--kvcrush", "0.75", "--kv-format", "int8")
QUESTIONS = ["Who is in the text?", "What happens?", "Where is it?", "How does it end?"]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """SmolLM2, a third of its weights zero and the others in 8 bits."""
    model = real_model("SmolLM2-135M-Instruct.Q4_1.gguf")
    out = tmp_path_factory.mktemp("sparse") / "smollm2.safetensors"
    made = scrimp("compress", model, "-o", out, "--sparsity", 0.3, "--method", "magnitude", "--format", "int8", "--output", "keep",
                  "--json", timeout=300).json()[0]
    assert abs(made["sparsity"] - 0.3) < 0.01
    return out


@pytest.fixture
def bits_of_any_batch(monkeypatch):
    """With AMX, batches of 48 tokens and more are products of bf16: an answer then depends on the others by rounding."""
    doctor = json.loads(scrimp("doctor", "--json").ok().stdout)
    if doctor["tier"] == "amx":
        monkeypatch.setenv("SCRIMP_TIER", "avx512")


@pytest.mark.usefixtures("bits_of_any_batch")
def test_weights_cache_and_embeddings_at_once(sparse, clicks):  # noqa: F811
    data, recommender, _ = clicks
    rows = [line.split(",") for line in data.read_text().splitlines()[1:101]]
    rows = [{"user": user, "site": site, "price": float(price)} for user, site, price, _ in rows]
    scores = [float(p) for p in scrimp("rec", "score", recommender, data).ok().stdout.splitlines()[:100]]
    text = TEXT.read_text()[:1500]
    server = Server(sparse, *KV, "--rec", recommender, "--max-seqs", 64)
    client = server.client()

    def ask(i):
        messages = [{"role": "user", "content": f"{text}\n\n{QUESTIONS[i % 4]}"}]
        answer = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=16, temperature=0, extra_body={"ignore_eos": True})
        return answer.choices[0].message.content, answer.usage

    def score(_):
        return server.post("/v1/score", {"rows": rows})

    alone = [ask(i) for i in range(4)]
    whole = scrimp("run", sparse, f"{text}\n\n{QUESTIONS[0]}", "--max-tokens", 16, "--json").json()[0]
    # A quarter of the tokens in half of the bytes; of so short a prompt, recent tokens in bf16 are a part.
    assert all(usage.kv_bytes < 0.25 * whole["kv_bytes"] for _, usage in alone)
    with concurrent.futures.ThreadPoolExecutor(72) as pool:
        chats, scored = [pool.submit(ask, i) for i in range(64)], [pool.submit(score, i) for i in range(8)]
        for answer in scored:
            status, said = answer.result()
            assert status == 200 and said["scores"] == pytest.approx(scores, abs=2e-6)
        for i, chat in enumerate(chats):
            said, usage = chat.result()
            assert said == alone[i % 4][0] and usage.completion_tokens == 16
    # The command says what the server says.
    same = scrimp("run", sparse, f"{text}\n\n{QUESTIONS[0]}", "--max-tokens", 16, *KV, "--json").json()[0]
    assert same["text"] == alone[0][0]
    assert server.stop() == 0
