"""Real models through the command: accuracy against transformers, chat, Ctrl-C."""

import json
import os
import signal
import subprocess
import time

import pytest

from conftest import BINARY, ROOT, TEXT, real_model, scrimp

NAMES = ["SmolLM2-135M-Instruct.Q4_1", "gemma-3-270m-Q4_K_M"]


def reference(name):
    return json.loads((ROOT / "testdata" / "reference" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_perplexity_as_transformers(name):
    expected = reference(name)["excerpt"]
    ran = scrimp("eval", "ppl", real_model(f"{name}.gguf"), "--text", TEXT, "--max-tokens", expected["max_tokens"], "--json",
                 timeout=300)
    result = ran.json()[0]
    assert result["tokens"] == expected["scored_tokens"]
    assert abs(result["ppl"] / expected["ppl"] - 1) < 0.007, (result["ppl"], expected["ppl"])


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_prompts(name):
    """The prompt's token count through the command is the reference tokenizer's."""
    for prompt in reference(name)["prompts"]:
        ran = scrimp("run", real_model(f"{name}.gguf"), prompt["prompt"], "--raw", "--max-tokens", 1, "--json")
        assert ran.json()[0]["prompt_tokens"] == len(prompt["ids"]), prompt["prompt"]


def test_a_chat_answers(smollm2):
    result = scrimp("run", smollm2, "What is the capital of France? Answer in one word.", "--temperature", 0,
                    "--max-tokens", 30, "--json").json()[0]
    assert "Paris" in result["text"], result["text"]
    assert "<|im_end|>" not in result["text"]


def test_gemma_without_template_says_raw():
    scrimp("run", real_model("gemma-3-270m-Q4_K_M.gguf"), "Hello").refused("--raw")


def test_a_prompt_that_fills_the_context(smollm2, tmp_path):
    words = ("one two three four five six seven eight nine ten " * 2000).encode()
    scrimp("run", smollm2, "-", "--raw", "--max-tokens", 1, stdin=words).refused("8192")


@pytest.mark.parametrize("options", [[], ["--temperature", 0.8, "--seed", 4], ["--kv-shrink", 4], ["--kv-format", "int8"]], ids=str)
def test_drafts_change_no_token(smollm2, options):
    prompt = "A ship left the harbor at dawn, and nobody saw it again.\nIts captain had a map of an island without a name.\n" * 12
    line = ("run", smollm2, prompt, "--raw", "--max-tokens", 120, "--json", *options)
    alone, drafted = (scrimp(*line, "--speculate", source).json()[0] for source in ("off", "ngram"))
    assert drafted["text"] == alone["text"]
    assert alone["drafted_tokens"] == 0 < drafted["accepted_tokens"] <= drafted["drafted_tokens"]


def test_a_draft_of_another_vocabulary_is_refused_before_weights_are_loaded(smollm2):
    draft = real_model("gemma-3-270m-Q4_K_M.gguf")
    scrimp("run", smollm2, "Hello", "--speculate", draft).refused("vocabularies differ")


def test_ctrl_c_keeps_what_was_generated(smollm2):
    command = [str(BINARY), "run", str(smollm2), "Tell me a very long story about a river.", "--max-tokens", "4000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as process:
        start = process.stdout.read(8)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    assert len(start) == 8 and rest, "text came before and was flushed after the signal"
    (start + rest).decode("utf-8")
    assert process.returncode == 130, errors.decode()
    assert b"panicked" not in errors


def test_ctrl_c_with_json_still_gives_the_object(smollm2):
    command = [str(BINARY), "run", str(smollm2), "Tell me a very long story about a river.", "--max-tokens", "4000", "--json"]
    for seconds in [2, 8, 30]:  # a busy machine may need longer to load the model; nothing is seen before the end
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as process:
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=20)
        assert process.returncode == 130
        if out:
            break
    assert json.loads(out)["generated_tokens"] > 0


def test_settings_compared_answer_as_each_does_alone(tmp_path):
    """Forks of one prompt decode together; nobody may notice."""
    model = real_model("SmolLM2-135M-Instruct.Q4_1.gguf")
    settings = ["--kv-budget 1.0", *(f"--kv-budget 0.25 --kv-policy snapkv --kvcrush {share}" for share in (0, 0.5)), "--kv-budget 60 --kv-policy streaming"]
    task = ("eval", "needle", model, "--haystack", TEXT, "--lengths", 300, "--depths", "0.3,0.7", "--json")

    def answers(name, lines):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
        state = tmp_path / f"{name}.jsonl"
        scrimp(*task, "--compare", tmp_path / f"{name}.txt", "--state", state).ok()
        entries = [json.loads(line) for line in state.read_text().splitlines()[1:]]
        return {(entry["sample"], entry["setting"]): entry["answer"] for entry in entries}

    together = answers("all", settings)
    assert len(together) == 8 and len(set(together.values())) > 1
    for i, setting in enumerate(settings):
        alone = answers(str(i), [setting])
        assert alone.items() <= together.items()
