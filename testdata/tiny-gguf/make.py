"""Writes testdata/tiny-gguf/: the tiny models as GGUF files, the way llama.cpp's converter lays them out.

usage: python3 testdata/tiny-gguf/make.py [NAME...]     (after testdata/tiny/make.py; torch, transformers, gguf, llama-cpp-python)

`llama3.gguf`, `qwen3.gguf`, `phi3.gguf` and `phi3-longrope.gguf` hold the very weights of testdata/tiny/, so the same
expectations apply. `llama-mixed.gguf` and `llama-types.gguf` have every stored type that scrimp reads in some tensor (but
Q2_0, which the gguf package does not have); what is expected of them, fp32 arithmetic on the dequantized weights, is in the
JSON files of the same names. Every file is also run through llama.cpp here and has to
agree, so that names, metadata and the permutation of Q and K are those that llama.cpp understands.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from gguf import ExpertGatingFuncType, GGMLQuantizationType as T, GGUFWriter, RopeScalingType, TokenType
try:
    from llama_cpp import Llama
except ImportError:
    Llama = None
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common.ggml_formats import decode, encode
from common.tiny import TINY, choose_prompt, expect, make_tokenizer, randomize, write_json

OUT = pathlib.Path(__file__).resolve().parent

# Where transformers and GGUF name a layer's tensors differently.
LAYER_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up",
    "mlp.gate": "ffn_gate_inp", "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha", "linear_attn.in_proj_ba": "ssm_ba", "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm", "linear_attn.out_proj": "ssm_out",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "operator_norm": "attn_norm", "ffn_norm": "ffn_norm", "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm", "self_attn.out_proj": "attn_output", "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down", "feed_forward.w3": "ffn_up", "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj", "conv.conv": "shortconv.conv",
    "self_attn.sinks": "attn_sinks", "mlp.router": "ffn_gate_inp",
    "mamba.in_proj": "ssm_in", "mamba.conv1d": "ssm_conv1d", "mamba.out_proj": "ssm_out", "mamba.norm": "ssm_norm",
    "block_sparse_moe.router": "ffn_gate_inp", "block_sparse_moe.experts.gate_proj": "ffn_gate_exps",
    "block_sparse_moe.experts.up_proj": "ffn_up_exps", "block_sparse_moe.experts.down_proj": "ffn_down_exps",
    "shared_mlp.gate_proj": "ffn_gate_shexp", "shared_mlp.up_proj": "ffn_up_shexp",
    "shared_mlp.output_linear": "ffn_down_shexp",
    "feed_forward.gate": "ffn_gate_inp", "feed_forward.experts.gate_proj": "ffn_gate_exps",
    "feed_forward.experts.up_proj": "ffn_up_exps", "feed_forward.experts.down_proj": "ffn_down_exps",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
GEMMA3N_NAMES = {
    "altup.modality_router": "altup_router", "altup.router_norm": "altup_router_norm",
    "altup.prediction_coefs": "altup_predict_coef", "altup.correction_coefs": "altup_correct_coef",
    "altup.correct_output_scale": "altup_correct_scale", "laurel.linear_left": "laurel_l",
    "laurel.linear_right": "laurel_r", "laurel.post_laurel_norm": "laurel_post_norm",
}
GEMMA4_NAMES = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm", "layer_scalar": "layer_output_scale",
    "per_layer_input_gate": "inp_gate", "per_layer_projection": "proj", "post_per_layer_input_norm": "post_norm",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2", "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2", "router.proj": "ffn_gate_inp",
    "experts.gate_up_proj": "ffn_gate_up_exps", "experts.down_proj": "ffn_down_exps",
}
ARCHITECTURES = {"gemma3n_text": "gemma3n", "gemma4_text": "gemma4", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "qwen3_5_text": "qwen35",
                 "qwen3_5_moe_text": "qwen35moe", "qwen3_next": "qwen3next", "lfm2_moe": "lfm2moe", "glm4_moe": "glm4moe",
                 "granitemoehybrid": "granitehybrid"}
GATED_DELTA = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
TOP_NAMES = {"model.embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
             "model.per_layer_model_projection.weight": "per_layer_model_proj.weight",
             "model.per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
             "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "model.embedding_norm.weight": "token_embd_norm.weight",
             "lm_head.weight": "output.weight"}


def gguf_name(name, model_type=None):
    """The GGUF name of a transformers parameter."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    if name.startswith("model.altup_"):
        return "altup_proj.weight" if "altup_projections" in name else "altup_unembd_proj.weight"
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1) if rest.endswith((".weight", ".bias")) else (rest, "weight")
    if model_type == "gemma4_text" and stem in ("router.scale", "router.per_expert_scale"):
        return f"blk.{layer}." + ("ffn_gate_inp.scale" if stem == "router.scale" else "ffn_down_exps.scale")
    if model_type == "gemma3n_text" and stem in GEMMA3N_NAMES:
        return f"blk.{layer}.{GEMMA3N_NAMES[stem]}.{kind}"
    if model_type in ("gemma3n_text", "gemma4_text") and stem in GEMMA4_NAMES:
        return f"blk.{layer}.{GEMMA4_NAMES[stem]}.{kind}"
    if stem.endswith("A_log"):
        return f"blk.{layer}.ssm_a"
    if stem.endswith("mamba.D"):
        return f"blk.{layer}.ssm_d"
    if stem.endswith("dt_bias"):
        return f"blk.{layer}.ssm_dt.bias"
    if stem.endswith(("expert_bias", "e_score_correction_bias")):
        return f"blk.{layer}.exp_probs_b.bias"
    if stem == "post_attention_layernorm" and model_type in ("gpt_oss", "glm4_moe", *GATED_DELTA):
        return f"blk.{layer}.post_attention_norm.{kind}"
    return f"blk.{layer}.{LAYER_NAMES[stem]}.{kind}"


def permute(matrix, heads):
    """Rows of Q or K from halves (i, i + d/2) to neighbors (2i, 2i + 1), as the converter does for `llama`."""
    rows, cols = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def unpermute(matrix, heads):
    """The inverse of `permute`."""
    rows, cols = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def heads_of(name, config):
    """Heads whose rows have to be permuted, or None."""
    if config.model_type != "llama":
        return None
    return config.num_attention_heads if "q_proj" in name else config.num_key_value_heads if "k_proj" in name else None


def add_gemma4(writer, config):
    """The layers of Gemma 4: those with a window and the global ones differ."""
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    of_global, local = (config.per_layer_config[sliding.index(kind)] for kind in (False, True))
    shared, width = config.num_kv_shared_layers, config.intermediate_size
    wide = 2 * width if config.use_double_wide_mlp else width
    writer.add_name("tiny random model")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(sliding))
    writer.add_feed_forward_length([width] * (len(sliding) - shared) + [wide] * shared)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv([(local if s else of_global).num_key_value_heads for s in sliding])
    writer.add_key_length(of_global.head_dim)
    writer.add_value_length(of_global.head_dim)
    writer.add_key_length_swa(local.head_dim)
    writer.add_value_length_swa(local.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_rope_dimension_count(of_global.head_dim)
    writer.add_rope_dimension_count_swa(local.head_dim)
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(sliding)
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.enable_moe_block:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def add_gemma3n(writer, config):
    writer.add_name("tiny random model")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_altup_active_idx(config.altup_active_idx)
    writer.add_altup_num_inputs(config.altup_num_inputs)
    sparsity = torch.tensor(config.activation_sparsity_pattern)
    writer.add_activation_sparsity_scale(torch.distributions.Normal(0, 1).icdf(sparsity).tolist())


def add_granite(writer, config):
    """The factors of Granite, and the sizes of Mamba-2."""
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_group_count(config.mamba_n_groups)
    writer.add_ssm_inner_size(config.mamba_d_head * config.mamba_n_heads)
    writer.add_ssm_time_step_rank(config.mamba_n_heads)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)
    writer.add_rope_scaling_finetuned(False)
    writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)


def add_metadata(writer, config):
    if config.model_type == "gemma3n_text":
        return add_gemma3n(writer, config)
    if config.model_type == "gemma4_text":
        return add_gemma4(writer, config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_name("tiny random model")  # llama.cpp takes special measures for some names
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    if config.model_type == "lfm2":
        unit = config.block_multiple_of
        writer.add_feed_forward_length((2 * config.intermediate_size // 3 + unit - 1) // unit * unit)
        writer.add_shortconv_l_cache(config.conv_L_cache)
    elif getattr(config, "intermediate_size", None):
        writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    kv_heads = config.num_key_value_heads
    if config.model_type == "lfm2_moe":
        writer.add_shortconv_l_cache(config.conv_L_cache)
    if config.model_type in ("lfm2", "lfm2_moe"):
        kv_heads = [0 if kind == "conv" else kv_heads for kind in config.layer_types]
    if config.model_type == "granitemoehybrid":
        kv_heads = [kv_heads if kind == "full_attention" else 0 for kind in config.layer_types]
        add_granite(writer, config)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps if config.model_type in ("lfm2", "lfm2_moe") else config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
        if config.model_type in ("lfm2_moe", "glm4_moe"):
            dense = config.num_dense_layers if config.model_type == "lfm2_moe" else config.first_k_dense_replace
            writer.add_leading_dense_block_count(dense)
            writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
            writer.add_expert_weights_scale(config.routed_scaling_factor)
        if config.model_type == "glm4_moe":
            writer.add_expert_weights_norm(config.norm_topk_prob)
            writer.add_expert_shared_count(config.n_shared_experts)
            writer.add_expert_group_count(config.n_group)
            writer.add_expert_group_used_count(config.topk_group)
        if getattr(config, "shared_expert_intermediate_size", None):
            writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if config.model_type in GATED_DELTA:
        writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
        writer.add_ssm_state_size(config.linear_key_head_dim)
        writer.add_ssm_group_count(config.linear_num_key_heads)
        writer.add_ssm_time_step_rank(config.linear_num_value_heads)
        writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
        writer.add_full_attention_interval(config.layer_types.index("full_attention") + 1)
        if config.model_type != "qwen3_next":
            writer.add_rope_dimension_sections([*rope.get("mrope_section", [11, 11, 10]), 0])
    if config.model_type == "gpt_oss":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config.model_type == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        if config.sliding_window:
            writer.add_sliding_window(config.sliding_window)
        else:
            writer.add_sliding_window(0)


def add_tokenizer(writer, config):
    data = json.loads(make_tokenizer(config.vocab_size).to_str())
    vocab = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    special = {t["content"] for t in data["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocab)
    writer.add_token_types([TokenType.CONTROL if t in special else TokenType.NORMAL for t in vocab])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in data["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


def add_rope_factors(writer, model):
    """The extra tensors of Llama-3 scaling and LongRoPE."""
    config, rope = model.config, model.config.rope_parameters
    if config.model_type == "gemma3n_text":
        return
    if config.model_type == "gemma4_text":
        head_dim = model.model.layers[config.layer_types.index("full_attention")].self_attn.head_dim
        rotated = int(head_dim * rope["full_attention"]["partial_rotary_factor"] / 2)
        writer.add_tensor("rope_freqs.weight", np.array([1.0] * rotated + [1e30] * (head_dim // 2 - rotated), np.float32))
        return
    if rope["rope_type"] == "llama3":
        head_dim = config.head_dim
        plain = 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
        scaled = model.model.rotary_emb.inv_freq.double().numpy()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    if rope["rope_type"] == "longrope":
        ratio = config.max_position_embeddings / config.original_max_position_embeddings
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_attn_factors(
            float(np.sqrt(1 + np.log(ratio) / np.log(config.original_max_position_embeddings))))
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))


def tiled(values, config, heads_from=0, axis=0):
    """Value heads from groups of a key head to the order in which key heads alternate, as the converter does for Qwen3.5."""
    keys, size = config.linear_num_key_heads, config.linear_num_value_heads
    fixed, heads = np.split(values, [heads_from], axis)
    shape = heads.shape
    heads = heads.reshape(*shape[:axis], keys, size // keys, shape[axis] // size, *shape[axis + 1:])
    return np.concatenate([fixed, heads.swapaxes(axis, axis + 1).reshape(shape)], axis)


def gated_delta(name, values, config):
    """What the converter changes in a parameter of Qwen3.5 and Qwen3-Next."""
    stem = name.rsplit(".", 1)[0] if name.endswith(".weight") else name
    stem = stem.rsplit("linear_attn.", 1)[-1]
    keys = 2 * config.linear_num_key_heads * config.linear_key_head_dim
    if stem == "conv1d":
        values = values.squeeze(1)
    is_tiled = config.model_type != "qwen3_next"
    if is_tiled and stem in ("in_proj_qkv", "conv1d"):
        values = tiled(values, config, heads_from=keys)
    if is_tiled and stem in ("in_proj_z", "in_proj_a", "in_proj_b", "A_log", "dt_bias"):
        values = tiled(values, config)
    if is_tiled and stem == "out_proj":
        values = tiled(values, config, axis=1)
    if stem == "A_log":
        values = -np.exp(values)
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        values = values + 1
    return np.ascontiguousarray(values)


def parameters(model):
    """Names and values; gate and up of all experts, which transformers has in one tensor, are two."""
    stored = ("layer_scalar", "expert_bias", "e_score_correction_bias")
    buffers = [(name, values) for name, values in model.named_buffers() if name.endswith(stored)]
    for name, weight in [*model.named_parameters(), *buffers]:
        values = weight.detach().float().numpy()
        if model.config.model_type == "granitemoehybrid" and name.endswith(("A_log", "mamba.D", "mamba.norm.weight")):
            groups = model.config.mamba_n_groups if name.endswith("norm.weight") else len(values)
            values = (-np.exp(values) if name.endswith("A_log") else values).reshape(groups, -1)
        if name.endswith("mamba.conv1d.weight"):
            values = values.squeeze(1)
        if name.endswith("shared_mlp.input_linear.weight"):
            for stem, half in zip(("gate_proj", "up_proj"), np.split(values, 2, axis=0)):
                yield name.replace("input_linear", stem), half
            continue
        if name.startswith("model.altup_"):
            # One tensor for all streams.
            if ".0." in name:
                modules = getattr(model.model, name.split(".")[1])
                yield name, np.stack([module.weight.detach().float().numpy() for module in modules])
            continue
        if name.endswith("embed_tokens_per_layer.weight"):
            # The converter pads the table, with zeros. The first row makes the model that of transformers.
            values = np.concatenate([values, np.repeat(values[:1], model.config.vocab_size - len(values), axis=0)])
        if name.endswith("conv.conv.weight"):
            values = values.squeeze(1)
        if name.endswith("shared_expert_gate.weight"):
            values = values.squeeze(0)
        if name.endswith("in_proj_qkvz.weight"):
            # Q, K, V and Z of each key head below each other.
            c, cols = model.config, values.shape[1]
            of_values = c.linear_num_value_heads // c.linear_num_key_heads * c.linear_value_head_dim
            cuts = np.cumsum([c.linear_key_head_dim, c.linear_key_head_dim, of_values])
            q, k, v, z = np.split(values.reshape(c.linear_num_key_heads, -1, cols), cuts, axis=1)
            yield name.replace("qkvz", "qkv"), np.concatenate([part.reshape(-1, cols) for part in (q, k, v)])
            yield name.replace("qkvz", "z"), z.reshape(-1, cols)
            continue
        if model.config.model_type == "gpt_oss" and ".mlp.experts." in name:
            # Gate and up alternate; matrices are transposed.
            stem, kind = (name[:-5], "bias") if name.endswith("_bias") else (name, "weight")
            values = values.swapaxes(1, 2) if kind == "weight" else values
            if stem.endswith("gate_up_proj"):
                yield stem.replace("gate_up_proj", f"gate_proj.{kind}"), values[:, 0::2]
                yield stem.replace("gate_up_proj", f"up_proj.{kind}"), values[:, 1::2]
            else:
                yield f"{stem}.{kind}", values
        elif name.endswith(("mlp.experts.gate_up_proj", "feed_forward.experts.gate_up_proj", "moe.experts.gate_up_proj")):
            for stem, half in zip(("gate_proj", "up_proj"), np.split(values, 2, axis=1)):
                yield name.replace("gate_up_proj", f"{stem}.weight"), half
        elif name.endswith(("mlp.experts.down_proj", "feed_forward.experts.down_proj", "moe.experts.down_proj")):
            yield f"{name}.weight", values
        else:
            yield name, values


def write(path, model, kind_of):
    """Writes `model`; `kind_of(gguf name)` is the stored type of a matrix. Vectors and routers are F32."""
    config = model.config
    writer = GGUFWriter(path, ARCHITECTURES.get(config.model_type, config.model_type))
    add_metadata(writer, config)
    add_tokenizer(writer, config)
    add_rope_factors(writer, model)
    for name, values in parameters(model):
        heads = heads_of(name, config)
        if heads:
            values = permute(values, heads)
        if config.model_type in GATED_DELTA:
            values = gated_delta(name, values, config)
        target = gguf_name(name, config.model_type)
        of_state = target.endswith(("ssm_a", "ssm_d", "ssm_norm.weight"))
        if values.ndim == 1 or of_state or target.endswith((".bias", ".scale")) or "ffn_gate_inp" in target or "conv1d" in target or "shortconv.conv" in target:
            writer.add_tensor(target, values)
        else:
            kind = kind_of(target)
            writer.add_tensor(target, encode(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare_with_llama_cpp(path, expected, bound):
    if Llama is None:
        print(f"{path.name:20} NOT COMPARED with llama.cpp: llama_cpp is not installed")
        return
    llm = Llama(str(path), n_ctx=256, n_threads=1, n_batch=64, logits_all=True, verbose=False)
    llm.eval(expected["ids"])
    last = np.array(expected["last_logits"])
    got = np.array(llm.scores[len(expected["ids"]) - len(last):len(expected["ids"])])
    error = np.abs(got - last).max()
    print(f"{path.name:20} {path.stat().st_size / 1024:6.0f} KiB  llama.cpp differs by {error:.3g}"
          f" (logits std {expected['logits_std']})")
    assert error < bound * expected["logits_std"], f"{path.name}: llama.cpp disagrees"


def convert(name, kind, bound):
    folder = TINY / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    path = OUT / f"{name}.gguf"
    write(path, model, lambda _: kind)
    expected = json.loads((folder / "expected.json").read_text())
    if model.config.model_type == "phi3" and model.config.sliding_window:
        # llama.cpp ignores Phi-3's window, so it is compared with the same weights without one.
        config = AutoConfig.from_pretrained(folder)
        config.sliding_window = None
        open_window = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
        expected = expect(open_window, expected["ids"])
    compare_with_llama_cpp(path, expected, bound)


def mixed():
    """The older types, once or more. K-quants want columns that are multiples of 256."""
    several_types("llama-mixed", 2, seed=2000, kinds={
        "token_embd.weight": T.Q5_1, "output.weight": T.Q6_K,
        "blk.0.attn_q.weight": T.Q4_K, "blk.0.attn_k.weight": T.Q8_0, "blk.0.attn_v.weight": T.F32,
        "blk.0.attn_output.weight": T.Q4_0, "blk.0.ffn_gate.weight": T.Q4_1, "blk.0.ffn_up.weight": T.Q5_0,
        "blk.0.ffn_down.weight": T.Q6_K,
        "blk.1.attn_q.weight": T.Q5_K, "blk.1.attn_k.weight": T.F16, "blk.1.attn_v.weight": T.BF16,
        "blk.1.attn_output.weight": T.Q8_0, "blk.1.ffn_gate.weight": T.Q5_K, "blk.1.ffn_up.weight": T.Q4_K,
        "blk.1.ffn_down.weight": T.Q5_1,
    })


def types():
    """The other types."""
    several_types("llama-types", 2, seed=2001, kinds={
        "token_embd.weight": T.Q3_K, "output.weight": T.IQ4_XS,
        "blk.0.attn_q.weight": T.Q2_K, "blk.0.attn_k.weight": T.IQ4_NL, "blk.0.attn_v.weight": T.MXFP4,
        "blk.0.attn_output.weight": T.NVFP4, "blk.0.ffn_gate.weight": T.IQ3_S, "blk.0.ffn_up.weight": T.IQ3_XXS,
        "blk.0.ffn_down.weight": T.IQ2_S,
        "blk.1.attn_q.weight": T.IQ2_XS, "blk.1.attn_k.weight": T.IQ2_XXS, "blk.1.attn_v.weight": T.IQ1_M,
        "blk.1.attn_output.weight": T.Q1_0, "blk.1.ffn_gate.weight": T.TQ1_0, "blk.1.ffn_up.weight": T.TQ2_0,
        "blk.1.ffn_down.weight": T.IQ1_S,
    })


def several_types(name, layers, seed, kinds):
    config = LlamaConfig(vocab_size=300, hidden_size=256, intermediate_size=256, num_hidden_layers=layers,
                         num_attention_heads=4, head_dim=32, num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False,
                         max_position_embeddings=128, rope_parameters=dict(rope_type="default", rope_theta=10000.0))
    model = AutoModelForCausalLM.from_config(config).float().eval()
    randomize(model, seed=seed)
    path = OUT / f"{name}.gguf"
    write(path, model, kinds.get)
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if weight.dim() == 2:
                values, heads, kind = weight.numpy(), heads_of(parameter, config), kinds[gguf_name(parameter)]
                values = permute(values, heads) if heads else values
                values = decode(encode(values, kind), kind)
                weight.copy_(torch.from_numpy(np.ascontiguousarray(unpermute(values, heads) if heads else values)))
    expected = {"family": "llama", "stored": "mixed", **choose_prompt(model, config.vocab_size, first_seed=1)}
    write_json(OUT / f"{name}.json", expected)
    compare_with_llama_cpp(path, expected, bound=0.2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    if not wanted or "llama-mixed" in wanted:
        mixed()
    if not wanted or "llama-types" in wanted:
        types()
    for name, kind, bound in [("llama3", T.F16, 0.02), ("qwen3", T.BF16, 0.05), ("phi3", T.F16, 0.02),
                              ("phi3-longrope", T.BF16, 0.05), ("qwen3moe", T.BF16, 0.05), ("gpt-oss", T.BF16, 0.05),
                              ("qwen35", T.BF16, 0.05), ("qwen35moe", T.BF16, 0.05), ("qwen3next", T.BF16, 0.05),
                              ("lfm2", T.BF16, 0.05), ("gemma4", T.BF16, 0.05), ("gemma4-moe", T.BF16, 0.05), ("lfm2moe", T.BF16, 0.05),
                              ("glm4moe", T.BF16, 0.05), ("granitehybrid-moe", T.BF16, 0.05),
                              ("gemma3n", T.BF16, 0.05)]:
        if not wanted or name in wanted:
            convert(name, kind, bound)
