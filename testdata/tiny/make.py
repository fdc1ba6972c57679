"""Writes testdata/tiny/<name>/: randomly initialized Hugging Face models and what transformers computes with them.

usage: python3 testdata/tiny/make.py [NAME...]     (torch 2.x, transformers 5.x, tokenizers; CPU, about a minute)

Sizes are awkward on purpose: widths that are no multiple of 64, head sizes unequal to hidden / heads, windows shorter
than the prompt. Expectations are fp32 arithmetic on the weights as stored (also where they are stored in 16 bits).
Some configurations are written the way published checkpoints are (`rope_theta`, `rope_scaling`), others the way
transformers 5 writes them (`rope_parameters`): a loader has to read both.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers import (Gemma2Config, Gemma3TextConfig, Gemma3nTextConfig, Gemma4TextConfig, Glm4Config, Glm4MoeConfig, GptOssConfig, GraniteConfig, GraniteMoeConfig, GraniteMoeHybridConfig, Lfm2Config, Lfm2MoeConfig, LlamaConfig, Ministral3Config,
                          MistralConfig, MixtralConfig, Olmo2Config, Olmo3Config, OlmoeConfig, Phi3Config, Qwen2Config, Qwen3Config, Qwen3MoeConfig, Qwen3NextConfig,
                          Qwen3_5MoeTextConfig, Qwen3_5TextConfig,
                          SmolLM3Config)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.tiny import PROMPT_TOKENS, TINY, choose_prompt, make_tokenizer, randomize, save_tokenizer, write_json

COMMON = dict(bos_token_id=0, eos_token_id=1, pad_token_id=None, max_position_embeddings=128)

LONG = dict(COMMON, max_position_embeddings=256)

S, F = "sliding_attention", "full_attention"

# name -> (configuration, stored type, options)
#   shards: number of safetensors files; legacy: the rope_scaling keys of a config.json as published; put: keys to set; mxfp4: experts in MXFP4, in a second folder;
#   drop: keys to leave out; fused: the experts of a layer in one tensor, as transformers 5 has them in memory; tokens: length of the prompt
MODELS = {
    "llama": (
        LlamaConfig(vocab_size=307, hidden_size=96, intermediate_size=136, num_hidden_layers=2, num_attention_heads=6,
                    num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters=dict(rope_theta=10000.0, rope_type="default"),
                    tie_word_embeddings=False, **COMMON),
        torch.float32, dict(shards=2, chat=True)),
    "llama3": (
        LlamaConfig(vocab_size=320, hidden_size=72, intermediate_size=104, num_hidden_layers=3, num_attention_heads=4,
                    head_dim=24, num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True,
                    rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                                         high_freq_factor=4.0, original_max_position_embeddings=32), **COMMON),
        torch.float16, dict(legacy=["rope_type", "factor", "low_freq_factor", "high_freq_factor",
                                    "original_max_position_embeddings"])),
    "mistral": (
        MistralConfig(vocab_size=300, hidden_size=80, intermediate_size=112, num_hidden_layers=2, num_attention_heads=3,
                      head_dim=32, num_key_value_heads=3, sliding_window=11, rms_norm_eps=1e-5,
                      rope_parameters=dict(rope_theta=10000.0, rope_type="default"), tie_word_embeddings=False, **COMMON),
        torch.float32, {}),
    "qwen2": (
        # sliding_window is there and switched off, as in published files: it has to be ignored.
        Qwen2Config(vocab_size=311, hidden_size=72, intermediate_size=88, num_hidden_layers=2, num_attention_heads=3,
                    num_key_value_heads=1, sliding_window=7, use_sliding_window=False, max_window_layers=2,
                    rms_norm_eps=1e-6, rope_parameters=dict(rope_theta=1000000.0, rope_type="default"),
                    tie_word_embeddings=False, **COMMON),
        torch.float32, dict(legacy=[], put=dict(sliding_window=7))),
    "qwen3": (
        Qwen3Config(vocab_size=304, hidden_size=72, intermediate_size=104, num_hidden_layers=3, num_attention_heads=4,
                    head_dim=24, num_key_value_heads=2, use_sliding_window=False, rms_norm_eps=1e-6,
                    rope_parameters=dict(rope_theta=1000000.0, rope_type="default"), tie_word_embeddings=True, **COMMON),
        torch.bfloat16, dict(legacy=[])),
    "gemma3": (
        Gemma3TextConfig(vocab_size=320, hidden_size=80, intermediate_size=96, num_hidden_layers=7, num_attention_heads=4,
                         head_dim=24, num_key_value_heads=1, query_pre_attn_scalar=20, sliding_window=12,
                         sliding_window_pattern=3, rms_norm_eps=1e-6,
                         rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=1000000.0),
                                              sliding_attention=dict(rope_type="default", rope_theta=10000.0)),
                         tie_word_embeddings=True, **COMMON),
        torch.bfloat16, dict(legacy=[], pattern=3)),
    "gemma3-softcap": (  # transformers 5 never applies attn_logit_softcapping: only the cap on the output is set
        Gemma3TextConfig(vocab_size=299, hidden_size=64, intermediate_size=72, num_hidden_layers=4, num_attention_heads=4,
                         head_dim=32, num_key_value_heads=2, query_pre_attn_scalar=32, sliding_window=9,
                         layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"], rms_norm_eps=1e-6,
                         rope_parameters=dict(full_attention=dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
                                              sliding_attention=dict(rope_type="default", rope_theta=10000.0)),
                         final_logit_softcapping=8.0, tie_word_embeddings=True, **COMMON),
        torch.float16, {}),
    "phi3": (
        Phi3Config(vocab_size=305, hidden_size=80, intermediate_size=120, num_hidden_layers=2, num_attention_heads=5,
                   num_key_value_heads=1, rms_norm_eps=1e-5, original_max_position_embeddings=128,
                   rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.75),
                   sliding_window=13, tie_word_embeddings=False, **COMMON),
        torch.float16, dict(legacy=[])),
    "phi3-longrope": (
        # The prompt passes the original 16 positions at once, so that transformers uses the long factors throughout.
        Phi3Config(vocab_size=300, hidden_size=96, intermediate_size=104, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2, rms_norm_eps=1e-5, original_max_position_embeddings=16,
                   rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.5,
                                        original_max_position_embeddings=16,
                                        short_factor=[1.0, 1.02, 1.05, 1.1, 1.3, 1.6],
                                        long_factor=[1.1, 1.4, 2.0, 3.5, 5.0, 8.0]),
                   tie_word_embeddings=True, **COMMON),
        torch.bfloat16, dict(legacy=["short_factor", "long_factor"], type_key="longrope")),
    "gemma2": (
        Gemma2Config(vocab_size=313, hidden_size=72, intermediate_size=88, num_hidden_layers=4, num_attention_heads=4,
                     head_dim=24, num_key_value_heads=2, query_pre_attn_scalar=20, sliding_window=10, attn_logit_softcapping=3.0,
                     final_logit_softcapping=7.0, rms_norm_eps=1e-6, tie_word_embeddings=True,
                     rope_parameters=dict(rope_type="default", rope_theta=10000.0), **COMMON),
        torch.bfloat16, dict(legacy=[])),
    "smollm3": (
        SmolLM3Config(vocab_size=309, hidden_size=72, intermediate_size=104, num_hidden_layers=5, num_attention_heads=6,
                      num_key_value_heads=2, no_rope_layer_interval=3, use_sliding_window=True, sliding_window=14,
                      rms_norm_eps=1e-6, tie_word_embeddings=True,
                      rope_parameters=dict(rope_type="default", rope_theta=50000.0), **COMMON),
        torch.bfloat16, {}),
    "granite": (
        GraniteConfig(vocab_size=302, hidden_size=80, intermediate_size=96, num_hidden_layers=3, num_attention_heads=5,
                      num_key_value_heads=1, embedding_multiplier=1.2, attention_multiplier=0.15, residual_multiplier=0.9,
                      logits_scaling=0.6, rms_norm_eps=1e-5, tie_word_embeddings=True,
                      rope_parameters=dict(rope_type="default", rope_theta=10000.0), **COMMON),
        torch.float16, dict(legacy=[])),
    "granitehybrid": (
        GraniteMoeHybridConfig(vocab_size=304, hidden_size=64, shared_intermediate_size=88, num_hidden_layers=3, num_attention_heads=4,
                               num_key_value_heads=2, num_local_experts=0, num_experts_per_tok=0, layer_types=["attention"] * 3,
                               position_embedding_type="rope", embedding_multiplier=2.0, attention_multiplier=0.2,
                               residual_multiplier=0.8, logits_scaling=0.6, rms_norm_eps=1e-5, tie_word_embeddings=True,
                               rope_parameters=dict(rope_type="default", rope_theta=10000.0), **COMMON),
        torch.bfloat16, {}),
    "olmo2": (
        Olmo2Config(vocab_size=306, hidden_size=72, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6,
                    num_key_value_heads=3, rms_norm_eps=1e-6, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="default", rope_theta=500000.0), **COMMON),
        torch.bfloat16, dict(legacy=[])),
    "olmo3": (
        Olmo3Config(vocab_size=308, hidden_size=80, intermediate_size=88, num_hidden_layers=5, num_attention_heads=5,
                    num_key_value_heads=5, sliding_window=11, rms_norm_eps=1e-6, tie_word_embeddings=False,
                    rope_parameters=dict(full_attention=dict(rope_type="yarn", rope_theta=500000.0, factor=8.0,
                                                             original_max_position_embeddings=16, attention_factor=1.2,
                                                             beta_fast=32.0, beta_slow=1.0),
                                         sliding_attention=dict(rope_type="default", rope_theta=500000.0)), **COMMON),
        torch.bfloat16, {}),
    "ministral3": (
        Ministral3Config(vocab_size=310, hidden_size=72, intermediate_size=104, num_hidden_layers=3, num_attention_heads=4,
                         head_dim=32, num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True,
                         rope_parameters=dict(rope_type="yarn", rope_theta=1000000.0, factor=8.0, beta_fast=32.0, beta_slow=1.0,
                                              mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=16,
                                              llama_4_scaling_beta=0.4), **COMMON),
        torch.bfloat16, {}),
    "qwen3moe": (
        Qwen3MoeConfig(vocab_size=303, hidden_size=64, intermediate_size=144, moe_intermediate_size=40, num_hidden_layers=3,
                       num_attention_heads=4, num_key_value_heads=2, head_dim=24, num_experts=7, num_experts_per_tok=3,
                       norm_topk_prob=True, rms_norm_eps=1e-6, tie_word_embeddings=False,
                       rope_parameters=dict(rope_type="default", rope_theta=1000000.0), **COMMON),
        torch.bfloat16, dict(legacy=[])),
    "mixtral": (
        MixtralConfig(vocab_size=301, hidden_size=72, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3,
                      num_key_value_heads=1, num_local_experts=5, num_experts_per_tok=2, sliding_window=None, rms_norm_eps=1e-5,
                      tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=1000000.0), **COMMON),
        torch.float16, {}),
    "olmoe": (
        OlmoeConfig(vocab_size=307, hidden_size=64, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=2, num_experts=8, num_experts_per_tok=3, norm_topk_prob=False, rms_norm_eps=1e-5,
                    tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=10000.0), **COMMON),
        torch.bfloat16, dict(fused=True)),
    # Every number of the experts is one of MXFP4, so the folder gpt-oss-mxfp4 has the same model.
    "gpt-oss": (
        GptOssConfig(vocab_size=311, hidden_size=64, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=24, num_local_experts=5, num_experts_per_tok=2, sliding_window=9,
                     rms_norm_eps=1e-5, tie_word_embeddings=False,
                     rope_parameters=dict(rope_type="yarn", rope_theta=150000.0, factor=8.0, beta_fast=32.0, beta_slow=1.0,
                                          truncate=False, original_max_position_embeddings=16), **COMMON),
        torch.bfloat16, dict(mxfp4=True)),
    "granitemoe": (
        GraniteMoeConfig(vocab_size=304, hidden_size=64, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=2, embedding_multiplier=2.0,
                         attention_multiplier=0.2, residual_multiplier=0.8, logits_scaling=0.6, rms_norm_eps=1e-5,
                         tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=10000.0), **COMMON),
        torch.bfloat16, {}),
    "glm4": (
        Glm4Config(vocab_size=306, hidden_size=72, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, head_dim=24,
                   num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False,
                   rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5), **COMMON),
        torch.bfloat16, {}),
    # Two value heads per key head; a prompt of more than one block of the delta rule (64 tokens).
    "qwen35": (
        Qwen3_5TextConfig(vocab_size=305, hidden_size=64, intermediate_size=72, num_hidden_layers=4, num_attention_heads=4,
                          num_key_value_heads=2, head_dim=32, linear_num_key_heads=2, linear_num_value_heads=4,
                          linear_key_head_dim=32, linear_value_head_dim=32, linear_conv_kernel_dim=4, full_attention_interval=3,
                          rms_norm_eps=1e-6, tie_word_embeddings=True,
                          rope_parameters=dict(rope_type="default", rope_theta=10000000.0, partial_rotary_factor=0.25,
                                               mrope_section=[2, 1, 1], mrope_interleaved=True), **LONG),
        torch.bfloat16, dict(tokens=150)),
    "qwen35moe": (
        Qwen3_5MoeTextConfig(vocab_size=301, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1,
                             head_dim=32, linear_num_key_heads=1, linear_num_value_heads=3, linear_key_head_dim=32,
                             linear_value_head_dim=32, linear_conv_kernel_dim=4, full_attention_interval=2,
                             moe_intermediate_size=24, shared_expert_intermediate_size=40, num_experts=6, num_experts_per_tok=2,
                             rms_norm_eps=1e-6, tie_word_embeddings=False,
                             rope_parameters=dict(rope_type="default", rope_theta=10000000.0, partial_rotary_factor=0.25,
                                                  mrope_section=[2, 1, 1], mrope_interleaved=True), **LONG),
        torch.bfloat16, dict(tokens=100)),
    "qwen3next": (
        Qwen3NextConfig(vocab_size=303, hidden_size=64, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=32, linear_num_key_heads=2, linear_num_value_heads=4,
                        linear_key_head_dim=32, linear_value_head_dim=32, linear_conv_kernel_dim=4, full_attention_interval=2,
                        moe_intermediate_size=24, shared_expert_intermediate_size=40, num_experts=6, num_experts_per_tok=2,
                        norm_topk_prob=True, rms_norm_eps=1e-6, tie_word_embeddings=False,
                        rope_parameters=dict(rope_type="default", rope_theta=10000000.0, partial_rotary_factor=0.25), **LONG),
        torch.bfloat16, dict(tokens=100, legacy=[], put=dict(full_attention_interval=2))),
    "lfm2": (
        Lfm2Config(vocab_size=306, hidden_size=64, intermediate_size=150, num_hidden_layers=5, num_attention_heads=4,
                   num_key_value_heads=2, norm_eps=1e-5, conv_L_cache=3, block_multiple_of=8, block_ffn_dim_multiplier=1.0,
                   block_auto_adjust_ff_dim=True, tie_word_embeddings=True,
                   layer_types=["conv", "full_attention", "conv", "full_attention", "conv"],
                   rope_parameters=dict(rope_type="default", rope_theta=1000000.0), **LONG),
        torch.bfloat16, dict(tokens=80)),
    # Like E2B: inputs of each layer, layers without keys and values of their own, larger heads in global layers.
    "gemma4": (
        Gemma4TextConfig(vocab_size=306, hidden_size=64, intermediate_size=72, num_hidden_layers=7, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=16, global_head_dim=40, sliding_window=10, num_kv_shared_layers=3,
                         layer_types=[S, F, S, F, S, F, F], use_double_wide_mlp=True, hidden_size_per_layer_input=24,
                         vocab_size_per_layer_input=306, final_logit_softcapping=9.0, tie_word_embeddings=True, **COMMON),
        torch.bfloat16, {}),
    # The table of the layers' inputs is shorter than the vocabulary.
    "gemma3n": (
        Gemma3nTextConfig(vocab_size=306, hidden_size=64, intermediate_size=80, num_hidden_layers=6, num_attention_heads=4,
                          num_key_value_heads=2, head_dim=16, sliding_window=10, num_kv_shared_layers=2,
                          layer_types=[S, F, S, F, S, F], hidden_size_per_layer_input=24, vocab_size_per_layer_input=290,
                          activation_sparsity_pattern=[0.95, 0.95, 0.0, 0.0, 0.0, 0.0], altup_num_inputs=4, laurel_rank=12,
                          final_logit_softcapping=9.0, tie_word_embeddings=True, **COMMON),
        torch.bfloat16, {}),
    # Like 26B-A4B, as published: experts beside the block, and values that are keys in global layers.
    "gemma4-moe": (
        Gemma4TextConfig(vocab_size=303, hidden_size=64, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=4, head_dim=16, global_head_dim=32, num_global_key_value_heads=1,
                         attention_k_eq_v=True, sliding_window=9, layer_types=[S, F, F], hidden_size_per_layer_input=0,
                         enable_moe_block=True, num_experts=6, top_k_experts=2, moe_intermediate_size=24,
                         final_logit_softcapping=9.0, tie_word_embeddings=True, **COMMON),
        torch.bfloat16, dict(fused=True, drop=["per_layer_config"], put=dict(global_head_dim=32, num_global_key_value_heads=1))),
    # One dense layer before those with experts, of both kinds.
    "lfm2moe": (
        Lfm2MoeConfig(vocab_size=305, hidden_size=64, intermediate_size=88, moe_intermediate_size=24, num_hidden_layers=4,
                      num_attention_heads=4, num_key_value_heads=2, norm_eps=1e-5, conv_L_cache=3, num_dense_layers=1,
                      num_experts=7, num_experts_per_tok=2, use_expert_bias=True, routed_scaling_factor=1.0,
                      norm_topk_prob=True, tie_word_embeddings=True, layer_types=["conv", F, "conv", F],
                      rope_parameters=dict(rope_type="default", rope_theta=1000000.0), **LONG),
        torch.bfloat16, dict(tokens=80)),
    # Mamba-2 beside attention, experts and a shared one, with the names of layers as published.
    "granitehybrid-moe": (
        GraniteMoeHybridConfig(vocab_size=303, hidden_size=64, intermediate_size=24, shared_intermediate_size=40, num_hidden_layers=4,
                               num_attention_heads=4, num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2,
                               layer_types=["linear_attention", F, "linear_attention", "linear_attention"], mamba_n_heads=8,
                               mamba_d_head=16, mamba_n_groups=2, mamba_d_state=32, mamba_d_conv=4, mamba_expand=2,
                               mamba_chunk_size=32, embedding_multiplier=2.0, attention_multiplier=0.2, residual_multiplier=0.8,
                               logits_scaling=0.6, rms_norm_eps=1e-5, tie_word_embeddings=True, **LONG),
        torch.bfloat16, dict(tokens=100, put=dict(layer_types=["mamba", "attention", "mamba", "mamba"]))),
    # A token chooses experts from two of three groups.
    "glm4moe": (
        Glm4MoeConfig(vocab_size=304, hidden_size=64, intermediate_size=88, moe_intermediate_size=24, num_hidden_layers=3,
                      num_attention_heads=4, num_key_value_heads=2, head_dim=24, attention_bias=True, use_qk_norm=True,
                      n_routed_experts=6, n_shared_experts=2, num_experts_per_tok=3, n_group=3, topk_group=2,
                      first_k_dense_replace=1, routed_scaling_factor=1.5, norm_topk_prob=True, num_mtp_layers=0,
                      rms_norm_eps=1e-5, tie_word_embeddings=False,
                      rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5), **COMMON),
        torch.bfloat16, {}),
}

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def round_to_mxfp4(weight):
    """`[experts, columns, rows]` rounded to MXFP4 along the columns, and its blocks and scales."""
    experts, cols, rows = weight.shape
    groups = weight.transpose(1, 2).reshape(experts, rows, cols // 32, 32)
    exponent = torch.floor(torch.log2(groups.abs().amax(-1, keepdim=True).clamp(min=1e-20))) - 2
    codes = (groups.abs() / 2**exponent).unsqueeze(-1).sub(FP4).abs().argmin(-1)
    rounded = FP4[codes] * groups.sign() * 2**exponent
    nibbles = (codes + 8 * (groups < 0)).to(torch.uint8)
    blocks = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    scales = (exponent.squeeze(-1) + 127).to(torch.uint8)
    return rounded.reshape(experts, rows, cols).transpose(1, 2).contiguous(), blocks.contiguous(), scales


def write_mxfp4(folder):
    """The folder of gpt-oss with blocks and scales, as published: FOLDER-mxfp4."""
    target = folder.with_name(folder.name + "-mxfp4")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    tensors = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            rounded, tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = round_to_mxfp4(weight.float())
            assert torch.equal(rounded, weight.float())
        else:
            tensors[name] = weight
    save_file(tensors, target / "model.safetensors")
    path = target / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])
    write_json(path, config)


def to_legacy(config, options):
    """`rope_parameters` of transformers 5 -> the keys that published checkpoints have."""
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_theta"] = rope["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["rope_scaling"] = None
        config["sliding_window_pattern"] = options["pattern"]
        for key in ("layer_types", "_sliding_window_pattern"):
            config.pop(key, None)
        return
    config["rope_theta"] = rope["rope_theta"]
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    scaling = {key: rope[key] for key in options["legacy"]}
    if "type_key" in options:
        scaling["type"] = options["type_key"]
    config["rope_scaling"] = scaling or None
    config.pop("layer_types", None)


def make(name, index):
    config, dtype, options = MODELS[name]
    folder = TINY / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    randomize(model, seed=1000 + index)
    if options.get("mxfp4"):
        with torch.no_grad():
            for parameter, weight in model.named_parameters():
                if parameter.endswith(("experts.gate_up_proj", "experts.down_proj")):
                    weight.copy_(round_to_mxfp4(weight)[0])
    size = sum(p.numel() * dtype.itemsize for p in model.parameters())
    shard = size // 2 + 20_000 if options.get("shards") else 10**9
    original = not options.get("fused", False)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard, save_original_format=original)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    if "legacy" in options:
        to_legacy(written, options)
        written["torch_dtype"] = written.pop("dtype", None)
    written.update(options.get("put", {}))
    for key in options.get("drop", []):
        written.pop(key)
    written.pop("transformers_version", None)
    write_json(path, written)
    save_tokenizer(make_tokenizer(config.vocab_size), folder, options.get("chat", False))

    # Read back from disk: what is expected comes from the files as committed.
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    expected = choose_prompt(stored, config.vocab_size, 7 * index + 1, options.get("tokens", PROMPT_TOKENS))
    expected = {"family": name, "stored": str(dtype).removeprefix("torch."), **expected}
    write_json(folder / "expected.json", expected)
    if options.get("mxfp4"):
        write_mxfp4(folder)
    files = sorted(folder.iterdir())
    print(f"{name:16} {sum(f.stat().st_size for f in files) / 1024:7.0f} KiB  logits std {expected['logits_std']:.3g}  "
          f"smallest greedy gap {expected['greedy_min_gap']:.3g}  {' '.join(f.name for f in files)}")
    return stored


if __name__ == "__main__":
    torch.set_num_threads(1)
    for index, name in enumerate(MODELS):
        if len(sys.argv) < 2 or name in sys.argv[1:]:
            make(name, index)
