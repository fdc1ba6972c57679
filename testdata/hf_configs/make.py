"""Writes golden.json: configurations as old and new transformers write them, and what transformers makes of them.

Needs torch and transformers 5; run as `python3 testdata/hf_configs/make.py > testdata/hf_configs/golden.json`.
"""
import json

from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Phi3Config, Qwen2Config, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

BASE = dict(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
KEEP = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    max_position_embeddings rms_norm_eps rope_parameters hidden_act hidden_activation model_type sliding_window
    use_sliding_window max_window_layers layer_types original_max_position_embeddings query_pre_attn_scalar
    final_logit_softcapping attn_logit_softcapping tie_word_embeddings rope_theta rope_scaling partial_rotary_factor
    attention_bias mlp_bias""".split()
cases = []


def add(name, config_class, rotary_class, **keys):
    """Adds a case: `keys` is what an older transformers would have written."""
    old = {**BASE, **keys}
    config = config_class.from_dict(dict(old))
    new = json.loads(config.to_json_string(use_diff=False))
    rotary = rotary_class(config)
    expect = {}
    if hasattr(rotary, "inv_freq"):
        expect["inv_freq"] = rotary.inv_freq.tolist()
        expect["magnitude"] = float(rotary.attention_scaling)
        parameters = config.rope_parameters
        if parameters.get("rope_type") == "longrope":
            original = parameters["original_max_position_embeddings"]
            long, _ = ROPE_INIT_FUNCTIONS["longrope"](config, None, seq_len=original + 1)
            expect["long_inv_freq"] = long.tolist()
            expect["original_context"] = original
    else:
        expect["inv_freq"] = rotary.full_attention_inv_freq.tolist()
        expect["magnitude"] = float(rotary.full_attention_attention_scaling)
        expect["local_inv_freq"] = rotary.sliding_attention_inv_freq.tolist()
    if getattr(config, "layer_types", None):
        spans = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
    else:
        spans = [getattr(config, "sliding_window", None)] * config.num_hidden_layers
    expect["sliding"] = spans
    old["model_type"] = config_class.model_type
    cases.append(dict(name=name, configs=[old, {key: new[key] for key in KEEP if key in new}], expect=expect))


add("llama", LlamaConfig, LlamaRotaryEmbedding, rope_theta=100000.0, max_position_embeddings=8192)
add(
    "llama linear",
    LlamaConfig,
    LlamaRotaryEmbedding,
    rope_theta=10000.0,
    max_position_embeddings=4096,
    rope_scaling=dict(type="linear", factor=2.0),
)
add(
    "llama dynamic",
    LlamaConfig,
    LlamaRotaryEmbedding,
    rope_theta=10000.0,
    max_position_embeddings=4096,
    rope_scaling=dict(type="dynamic", factor=2.0),
)
add(
    "llama 3.2",
    LlamaConfig,
    LlamaRotaryEmbedding,
    rope_theta=500000.0,
    max_position_embeddings=131072,
    head_dim=64,
    rope_scaling=dict(
        factor=32.0,
        high_freq_factor=4.0,
        low_freq_factor=1.0,
        original_max_position_embeddings=8192,
        rope_type="llama3",
    ),
)
add(
    "mistral",
    MistralConfig,
    LlamaRotaryEmbedding,
    rope_theta=10000.0,
    max_position_embeddings=32768,
    sliding_window=4096,
)
add(
    "mistral null window",
    MistralConfig,
    LlamaRotaryEmbedding,
    rope_theta=1000000.0,
    max_position_embeddings=32768,
    sliding_window=None,
)
add(
    "qwen2 yarn",
    Qwen2Config,
    Qwen2RotaryEmbedding,
    rope_theta=1000000.0,
    max_position_embeddings=131072,
    rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32768),
    num_attention_heads=1,
    num_key_value_heads=1,
)
add(
    "qwen2 yarn deepseek scales",
    Qwen2Config,
    Qwen2RotaryEmbedding,
    rope_theta=10000.0,
    max_position_embeddings=163840,
    rope_scaling=dict(
        type="yarn",
        factor=40.0,
        original_max_position_embeddings=4096,
        mscale=1.0,
        mscale_all_dim=0.7,
        beta_fast=16.0,
        beta_slow=2.0,
    ),
)
add(
    "qwen2 windows",
    Qwen2Config,
    Qwen2RotaryEmbedding,
    rope_theta=1000000.0,
    max_position_embeddings=32768,
    use_sliding_window=True,
    sliding_window=1024,
    max_window_layers=1,
)
add(
    "qwen3",
    Qwen3Config,
    Qwen2RotaryEmbedding,
    rope_theta=1000000.0,
    max_position_embeddings=40960,
    head_dim=128,
)
add(
    "gemma3",
    Gemma3TextConfig,
    Gemma3RotaryEmbedding,
    rope_theta=1000000.0,
    rope_local_base_freq=10000.0,
    max_position_embeddings=32768,
    head_dim=32,
    sliding_window=512,
    sliding_window_pattern=6,
    num_hidden_layers=8,
    query_pre_attn_scalar=256,
)
add(
    "gemma3 4b",
    Gemma3TextConfig,
    Gemma3RotaryEmbedding,
    max_position_embeddings=131072,
    rope_scaling=dict(factor=8.0, rope_type="linear"),
    sliding_window=1024,
    num_hidden_layers=7,
)
short = [1.0 + 0.02 * i for i in range(6)]
long = [1.5 + 3.0 * i for i in range(6)]
add(
    "phi4 longrope partial",
    Phi3Config,
    Phi3RotaryEmbedding,
    rope_theta=10000.0,
    max_position_embeddings=131072,
    original_max_position_embeddings=4096,
    partial_rotary_factor=0.75,
    rope_scaling=dict(type="longrope", short_factor=short, long_factor=long),
    sliding_window=262144,
)
short = [1.0 + 0.02 * i for i in range(8)]
long = [1.5 + 3.0 * i for i in range(8)]
add(
    "phi3 su",
    Phi3Config,
    Phi3RotaryEmbedding,
    rope_theta=10000.0,
    max_position_embeddings=131072,
    original_max_position_embeddings=4096,
    rope_scaling=dict(
        type="su",
        short_factor=short,
        long_factor=long,
        original_max_position_embeddings=4096,
    ),
)
add(
    "phi3 4k",
    Phi3Config,
    Phi3RotaryEmbedding,
    rope_theta=10000.0,
    max_position_embeddings=4096,
    original_max_position_embeddings=4096,
    sliding_window=2047,
)

print("[" + ",\n".join(json.dumps(case) for case in cases) + "]")
