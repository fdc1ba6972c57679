"""Language models: text, streams, chats, logits. Numbers are those of tiny random models; SmolLM2 where it is at hand."""

import asyncio
import json
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time

import pytest

import scrimp
from conftest import ROOT

numpy = pytest.importorskip("numpy")
TINY = ROOT / "testdata" / "tiny"


@pytest.fixture(scope="module")
def llama():
    return scrimp.LLM(str(TINY / "llama"), threads=2)


@pytest.fixture(scope="module")
def smollm2():
    folder = os.environ.get("SCRIMP_TEST_MODELS")
    path = pathlib.Path(folder or "/nonexistent") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in SCRIMP_TEST_MODELS ({folder})")
    return scrimp.LLM(str(path))


def test_logits_are_those_of_transformers(llama):
    expected = json.loads((TINY / "llama" / "expected.json").read_text())
    ids = expected["ids"]
    exact = scrimp.LLM(str(TINY / "llama"), threads=2, kv_format="f32")
    got = exact.logits(ids, all=True)
    assert got.shape == (len(ids), llama.vocab_size) and got.dtype == numpy.float32
    last = numpy.array(expected["last_logits"], dtype=numpy.float32)
    assert numpy.abs(got[-len(last) :] - last).max() < 1e-3 * expected["logits_std"]
    assert numpy.abs(exact.logits(ids) - got[-1]).max() < 1e-4 * expected["logits_std"]


def test_encode_and_decode(llama):
    ids = llama.encode("hello world")
    assert ids and llama.decode(ids).strip() == "hello world"


def test_generate_is_greedy_and_streams_the_same(llama):
    answer = llama.generate("hello", raw=True, max_tokens=12)
    assert 1 <= len(answer.tokens) <= 12 and answer.finish_reason in ("length", "end")
    assert str(answer) == answer.text and answer.kv_bytes > 0
    assert "".join(llama.stream("hello", raw=True, max_tokens=12)) == answer.text
    first = int(llama.logits("hello").argmax())
    assert answer.tokens[0] == first


def test_sampling_is_repeatable(llama):
    draw = lambda seed: llama.generate("a", raw=True, max_tokens=8, temperature=2.0, seed=seed).tokens
    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1


def test_async(llama):
    want = llama.generate("hello", raw=True, max_tokens=10)

    async def run():
        answers = await asyncio.gather(*[llama.agenerate("hello", raw=True, max_tokens=10) for _ in range(3)])
        pieces = [piece async for piece in llama.astream("hello", raw=True, max_tokens=10)]
        return answers, pieces

    answers, pieces = asyncio.run(run())
    assert all(a.tokens == want.tokens for a in answers)
    assert "".join(pieces) == want.text


def test_leaving_a_stream_ends_it(llama):
    threads = threading.active_count()
    for _ in range(5):
        stream = llama.stream("hello", raw=True)
        next(stream)
        stream.close()
    time.sleep(0.05)
    assert threading.active_count() <= threads + 1


def test_base_models_do_not_chat(llama):
    if llama._model.can_chat:
        pytest.skip("this tiny model has a template")
    with pytest.raises(ValueError, match="chat template"):
        llama.chat("hello")


@pytest.mark.parametrize(
    "call,error,words",
    [
        (lambda m: scrimp.LLM("/nonexistent/model.gguf"), (OSError, ValueError), "nonexistent"),
        (lambda m: scrimp.LLM(str(TINY / "llama"), threads=0), ValueError, "threads"),
        (lambda m: scrimp.LLM(str(TINY / "llama"), kv_format="int3"), (ValueError, RuntimeError), "int3"),
        (lambda m: m.generate(""), ValueError, "empty"),
        (lambda m: m.generate(5), TypeError, "must be a str or"),
        (lambda m: m.generate("x", raw=True, temperature=-1.0), ValueError, "temperature"),
        (lambda m: m.generate("x", raw=True, max_tokens=0), ValueError, "max_tokens"),
        (lambda m: m.generate("x", raw=True, kvcrush=0.5), ValueError, "needs kv_budget"),
        (lambda m: m.generate("x", raw=True, seed=-1), ValueError, "seed must be 0 or more"),
        (lambda m: m.generate("x", raw=True, seed=1.5), TypeError, "seed must be a whole number, not 1.5"),
        (lambda m: m.generate("x", raw=True, top_k=-1), ValueError, "top_k must be 0 or more"),
        (lambda m: m.generate("x", raw=True, max_tokens=2**70), ValueError, "max_tokens must be 1 or more"),
        (lambda m: m.generate("x", raw=True, temperature="hot"), TypeError, "temperature must be a number, not 'hot'"),
        (lambda m: m.generate("x", raw=True, kv_budget="all"), TypeError, "kv_budget must be a number"),
        (lambda m: scrimp.LLM(str(TINY / "llama"), threads=-1), ValueError, "threads must be 1 or more"),
        (lambda m: m.decode([-1]), ValueError, "token id must be 0 or more"),
        (lambda m: m.generate("x", raw=True, kv_budget=0.25, kv_policy="h3o"), ValueError, "h3o"),
        (lambda m: m.generate("x", raw=True, kv_budget=1.5), ValueError, "1.5"),
        (lambda m: m.generate("x", raw=True, kv_shrink=5), ValueError, "there are 4, 8, 16"),
        (lambda m: m.generate("x", raw=True, kv_shrink=2**40), ValueError, "there are 4, 8, 16"),
        (lambda m: m.generate("x", raw=True, kv_shrink=4, kv_budget=0.5), ValueError, "leave kv_budget"),
        (lambda m: m.generate("x", raw=True, speculate="words"), ValueError, "there are off, ngram, model"),
        (lambda m: m.generate("x", raw=True, speculate="model"), ValueError, "draft_model"),
        (lambda m: scrimp.LLM(str(TINY / "llama"), draft_model="/nonexistent/model.gguf"), (OSError, ValueError), "nonexistent"),
        (lambda m: m.generate("x", raw=True, speculate=5), TypeError, "speculation"),
        (lambda m: m.generate("x", raw=True, nonsense=1), TypeError, "nonsense"),
        (lambda m: m.stream("x", raw=True, max_tokens=0), ValueError, "max_tokens"),
        (lambda m: m.logits([10**6]), ValueError, "vocabulary"),
        (lambda m: m.logits([]), ValueError, "no tokens"),
        (lambda m: m.render([{"role": "user"}]), TypeError, "role"),
    ],
)
def test_bad_input_is_an_exception(llama, call, error, words):
    with pytest.raises(error, match=words):
        call(llama)


def test_numbers_of_other_libraries_are_numbers(llama):
    options = dict(raw=True, max_tokens=4, temperature=0.5, top_k=3, top_p=0.5, min_p=0.25, seed=7, kv_budget=0.5)
    want = llama.generate("hello", **options).tokens
    of_numpy = {k: v if v is True else numpy.int64(v) if isinstance(v, int) else numpy.float32(v) for k, v in options.items()}
    assert llama.generate("hello", **of_numpy).tokens == want
    assert llama.generate("hello", raw=True, max_tokens=numpy.uint8(4), kv_budget=numpy.int32(50)).tokens
    ids = llama.encode("hello world")
    assert llama.decode(numpy.array(ids)) == llama.decode(ids)
    torch = pytest.importorskip("torch")
    of_torch = {k: v if v is True else torch.tensor(v) for k, v in options.items()}
    assert llama.generate("hello", **of_torch).tokens == want
    assert numpy.array_equal(llama.logits(torch.tensor(ids)), llama.logits(ids))


def test_a_model_is_pickled_as_its_reference(llama):
    other = pickle.loads(pickle.dumps(llama))
    assert numpy.array_equal(other.logits("hello"), llama.logits("hello")) and other._arguments == (2, "bf16", None)


INTERRUPTED = """
import signal, sys, threading
import scrimp

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process may ignore it

llm = scrimp.LLM(sys.argv[1], threads=1)
main, over = threading.main_thread().ident, threading.Event()

def busy(_):
    signal.pthread_kill(main, signal.SIGINT)
    over.wait()  # the model computes until the caller has returned

try:
    llm._answer(llm.encode("hello world"), {}, busy)
except KeyboardInterrupt:
    over.set()
    print("interrupted", len(llm.generate("hello", raw=True, max_tokens=2).tokens) > 0)
"""


def test_an_interrupt_does_not_wait_for_the_model():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(TINY / "llama")], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["interrupted", "True"], done.stderr


def test_smollm2_answers(smollm2):
    question = "Explain what a computer program is in one sentence."
    answer = smollm2.generate(question, max_tokens=30)
    assert "set of instructions" in answer.text and answer.decode_seconds > 0
    assert smollm2.chat(question, max_tokens=30).text == answer.text
    assert "".join(smollm2.chat([{"role": "user", "content": question}], stream=True, max_tokens=30)) == answer.text
    brief = smollm2.chat([{"role": "system", "content": "Answer with one word."}, {"role": "user", "content": question}], max_tokens=5)
    assert brief.text != answer.text
    stopped = smollm2.generate(question, max_tokens=30, stop="instructions")
    assert stopped.finish_reason == "stop" and answer.text.startswith(stopped.text) and "instructions" not in stopped.text


def test_a_small_cache(smollm2):
    text = "The code word is BANANA. " + "The grass is green and the sky is blue. " * 60
    full = smollm2.generate(text, max_tokens=5)
    small = smollm2.generate(text, max_tokens=5, kv_budget=0.25, kvcrush=0.75)
    assert small.kv_bytes < 0.4 * full.kv_bytes
    assert smollm2.generate(text, max_tokens=5, kv_budget=0.25).kv_bytes < 0.4 * full.kv_bytes
    for factor in (4, 8):
        # The last tokens stay in bf16 for a while.
        assert smollm2.generate(text, max_tokens=5, kv_shrink=factor).kv_bytes < 1.5 / factor * full.kv_bytes


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}, {"kv_budget": 0.5}], ids=str)
def test_drafts_change_no_token(smollm2, options):
    text = "Repeat this text: the rain in the hills runs to the river, and the river runs to the sea. " * 3
    alone = smollm2.generate(text, max_tokens=60, **options)
    drafted = smollm2.generate(text, max_tokens=60, speculate="ngram", **options)
    assert drafted.tokens == alone.tokens


def test_a_draft_model_changes_no_token():
    llm = scrimp.LLM(str(TINY / "llama"), draft_model=str(TINY / "olmoe"))
    options = {"raw": True, "max_tokens": 40, "temperature": 0.5, "seed": 1}
    alone = llm.generate("the rain in the hills", speculate="off", **options)
    drafted = llm.generate("the rain in the hills", **options)
    assert drafted.tokens == alone.tokens
    assert alone.draft_kv_bytes == alone.drafted_tokens == 0 <= drafted.accepted_tokens <= drafted.drafted_tokens
    copy = pickle.loads(pickle.dumps(llm))
    assert copy.generate("the rain in the hills", speculate="model", **options).tokens == alone.tokens
