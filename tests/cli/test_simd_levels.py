"""Every SIMD level generates the same greedy text."""

import json

import pytest

from conftest import TINY, TINY_GGUF, scrimp

TIERS = ["scalar", "avx2", "avx512"]


def supported():
    return json.loads(scrimp("doctor", "--json").ok().stdout)["supported_tiers"]


def text(model, prompt, tokens, tier):
    ran = scrimp("run", model, prompt, "--raw", "--max-tokens", tokens, "--temperature", 0, "--json",
                 env={"SCRIMP_TIER": tier}, timeout=200)
    return ran.json()[0]["text"]


@pytest.fixture(scope="module")
def tiers():
    return supported()


@pytest.mark.parametrize("tier", TIERS[1:])
@pytest.mark.parametrize("model", [*sorted(path for path in TINY.iterdir() if path.is_dir()),
                                   *sorted(TINY_GGUF.glob("*.gguf"))], ids=lambda p: p.name)
def test_tiny_models(model, tier, tiers):
    if tier not in tiers:
        pytest.skip(f"this CPU has no {tier}")
    # A model may end its answer at once.
    prompts = ["the rain in the hills", "a small model reads a text", "the river turns"]
    answers = ((prompt, text(model, prompt, 24, "scalar")) for prompt in prompts)
    prompt, scalar = next((pair for pair in answers if pair[1]), ("", ""))
    assert scalar, "a model that says nothing agrees with everything"
    assert text(model, prompt, 24, tier) == scalar


@pytest.mark.parametrize("tier", TIERS[1:])
def test_smollm2(smollm2, tier, tiers):
    if tier not in tiers:
        pytest.skip(f"this CPU has no {tier}")
    prompt = "The capital of France is"
    scalar = text(smollm2, prompt, 24, "scalar")
    assert "Paris" in scalar
    assert text(smollm2, prompt, 24, tier) == scalar


def test_the_variable_chooses_the_tier(tiers):
    assert tiers[0] == "scalar"
    for tier in tiers:
        assert json.loads(scrimp("doctor", "--json", env={"SCRIMP_TIER": tier}).ok().stdout)["tier"] == tier


def test_unsupported_tier_is_an_error(tiers):
    for tier in [tier for tier in [*TIERS, "amx", "neon", "AVX2"] if tier not in tiers]:
        ran = scrimp("run", TINY / "llama", "a", "--raw", "--max-tokens", 1, env={"SCRIMP_TIER": tier})
        ran.refused(tier, "scalar")
