"""Every kernel tier gives the same greedy text."""

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
@pytest.mark.parametrize("model", [TINY / "llama", TINY / "qwen3", TINY / "gemma3", TINY / "phi3",
                                   TINY_GGUF / "llama-mixed.gguf"], ids=lambda p: p.name)
def test_tiny_models(model, tier, tiers):
    if tier not in tiers:
        pytest.skip(f"this CPU has no {tier}")
    assert text(model, "the rain in the hills", 24, tier) == text(model, "the rain in the hills", 24, "scalar")


@pytest.mark.parametrize("tier", TIERS[1:])
def test_smollm2(smollm2, tier, tiers):
    if tier not in tiers:
        pytest.skip(f"this CPU has no {tier}")
    prompt = "The capital of France is"
    assert text(smollm2, prompt, 24, tier) == text(smollm2, prompt, 24, "scalar")


def test_unsupported_tier_is_an_error(tiers):
    missing = [tier for tier in [*TIERS, "amx", "neon"] if tier not in tiers]
    if not missing:
        pytest.skip("this CPU has every tier")
    for tier in missing:
        ran = scrimp("run", TINY / "llama", "a", "--raw", "--max-tokens", 1, env={"SCRIMP_TIER": tier})
        ran.refused(tier, "scalar")
