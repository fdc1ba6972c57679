//! The common part of Qwen3-Next and Qwen3.5: layers with the gated delta rule (Yang et al. 2024, arXiv 2412.06464) beside
//! attention whose output is gated, with norms of query and key heads and RoPE on a quarter of a head.

use super::{GgufKeys, HfConfig, TensorSpec, common, experts, tensors};
use crate::{
    config::{ExpertWeighting, ModelConfig, RecurrenceKind},
    error::Result,
};
use scrimp_kernels::ops::DeltaShape;

/// Every fourth layer is attention, unless the file says otherwise.
const INTERVAL: usize = 4;
/// The rotated share of a head.
const ROTATED: f64 = 0.25;
/// Largest number of tokens that the convolution sees.
const MAX_KERNEL: usize = 64;

/// Completes the configuration of a GGUF file. `tiled`: the order of its value heads.
pub(super) fn gguf(keys: &GgufKeys<'_>, config: &mut ModelConfig, tiled: bool) -> Result<()> {
    let bad = common::bad(keys);
    common::drop_predictors(keys, config)?;
    let value_heads = keys.need_size("ssm.time_step_rank", common::limit::HEADS)?;
    let inner = keys.need_size("ssm.inner_size", common::limit::HEADS * common::limit::HEAD_DIM)?;
    let shape = DeltaShape {
        key_heads: keys.need_size("ssm.group_count", common::limit::HEADS)?,
        value_heads,
        key_dim: keys.need_size("ssm.state_size", common::limit::HEAD_DIM)?,
        value_dim: inner / value_heads,
        kernel: keys.need_size("ssm.conv_kernel", MAX_KERNEL)?,
        tiled,
    };
    if !inner.is_multiple_of(value_heads) {
        return Err(bad(format!("values of {inner} elements do not divide into {value_heads} heads")));
    }
    let layers = match keys.flags("attention.recurrent_layers", config.n_layers)? {
        Some(layers) => layers,
        None => by_interval(
            config.n_layers,
            keys.size("full_attention_interval", common::limit::LAYERS)?.unwrap_or(INTERVAL),
        ),
    };
    complete(config, layers, shape).map_err(bad)
}

/// Completes the configuration of a `config.json`.
pub(super) fn hf(hf: &HfConfig<'_>, config: &mut ModelConfig) -> Result<()> {
    let size = |key: &str, max: usize, default: usize| -> Result<usize> {
        Ok(hf.size(key, max)?.unwrap_or(default))
    };
    let heads = |key: &str, default| size(key, common::limit::HEADS, default);
    let dim = |key: &str| size(key, common::limit::HEAD_DIM, 128);
    let shape = DeltaShape {
        key_heads: heads("linear_num_key_heads", 16)?,
        value_heads: heads("linear_num_value_heads", 32)?,
        key_dim: dim("linear_key_head_dim")?,
        value_dim: dim("linear_value_head_dim")?,
        kernel: size("linear_conv_kernel_dim", MAX_KERNEL, 4)?,
        tiled: false,
    };
    let layers = match hf.layer_kinds(config.n_layers, "linear_attention")? {
        Some(layers) => layers,
        None => {
            by_interval(config.n_layers, size("full_attention_interval", common::limit::LAYERS, INTERVAL)?)
        }
    };
    (config.rope, config.rope_long) = hf.partial_ropes(config.head_dim, ROTATED, config.context_length)?;
    config.norm_plus_one = true;
    complete(config, layers, shape).map_err(|what| hf.bad(what))
}

/// The configuration of a `config.json` with experts in all layers, one of them shared.
pub(super) fn hf_with_experts(
    family: &'static str,
    hf: &HfConfig<'_>,
    defaults: &experts::HfDefaults,
) -> Result<ModelConfig> {
    // There are no dense blocks.
    let hf = &hf.with_defaults(&[("intermediate_size", 512)]);
    let common = common::HfDefaults { head_dim: Some(256), kv_heads: Some(2), ..Default::default() };
    let mut config = common::hf(family, hf, &common)?;
    self::hf(hf, &mut config)?;
    experts::all_layers(hf)?;
    let weighting = match hf.bool("norm_topk_prob")? {
        Some(false) => ExpertWeighting::Softmax,
        _ => ExpertWeighting::SoftmaxOfChosen,
    };
    let width =
        |key: &str| -> Result<usize> { Ok(hf.size(key, common::limit::INTERMEDIATE)?.unwrap_or(512)) };
    config.intermediate_size = width("moe_intermediate_size")?;
    let mut experts = experts::hf(hf, defaults, weighting, config.intermediate_size)?;
    experts.shared = Some(width("shared_expert_intermediate_size")?);
    config.experts = Some(experts);
    Ok(config)
}

/// Every `interval`th layer is attention.
fn by_interval(n_layers: usize, interval: usize) -> Vec<bool> {
    (0..n_layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect()
}

fn complete(config: &mut ModelConfig, layers: Vec<bool>, shape: DeltaShape) -> Result<(), String> {
    let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = shape;
    if !value_heads.is_multiple_of(key_heads) {
        return Err(format!("{value_heads} value heads cannot share {key_heads} key heads evenly"));
    }
    if !key_dim.is_multiple_of(16) || !value_dim.is_multiple_of(16) || value_dim == 0 {
        return Err(format!(
            "linear attention with heads of {key_dim} and {value_dim} elements; multiples of 16 are needed"
        ));
    }
    config.attn_gate = true;
    common::set_recurrence(config, layers, RecurrenceKind::GatedDelta(shape))
}

/// Shapes of the tensors of an attention layer. `layer` has those of its second block.
pub(super) fn attention_layer(config: &ModelConfig, mut layer: Vec<TensorSpec>) -> Vec<TensorSpec> {
    for spec in &mut layer {
        // Queries and gates.
        if spec.name.starts_with("attn_q.") {
            spec.shape[0] = 2 * config.q_dim();
        }
    }
    layer.extend(tensors::head_norms(config));
    layer
}

/// Shapes of the tensors of a recurrent layer. `layer` has those of its second block.
pub(super) fn recurrent_layer(config: &ModelConfig, mut layer: Vec<TensorSpec>) -> Vec<TensorSpec> {
    let Some(RecurrenceKind::GatedDelta(shape)) = config.recurrence.as_ref().map(|r| r.kind) else {
        return layer;
    };
    let (h, keys, values, heads) = (config.hidden_size, shape.keys(), shape.values(), shape.value_heads);
    tensors::remove_attention(&mut layer);
    layer.extend([
        tensors::required("ssm_conv1d.weight", &[2 * keys + values, shape.kernel]),
        tensors::required("ssm_dt_bias.weight", &[heads]),
        tensors::required_unless("ssm_a.weight", &[heads], "ssm_a_log.weight"),
        tensors::required_unless("ssm_a_log.weight", &[heads], "ssm_a.weight"),
        tensors::required("ssm_norm.weight", &[shape.value_dim]),
        tensors::required("ssm_out.weight", &[h, values]),
        tensors::required_unless("attn_qkv.weight", &[2 * keys + values, h], "ssm_in.weight"),
        tensors::required_unless("attn_gate.weight", &[values, h], "ssm_in.weight"),
        tensors::required_unless("ssm_in.weight", &[2 * (keys + values), h], "attn_qkv.weight"),
        tensors::required_unless("ssm_beta.weight", &[heads, h], "ssm_ba.weight"),
        tensors::required_unless("ssm_alpha.weight", &[heads, h], "ssm_ba.weight"),
        tensors::required_unless("ssm_ba.weight", &[2 * heads, h], "ssm_beta.weight"),
    ]);
    layer
}

/// As [`super::Family::layer_tensor_name`].
pub(super) fn layer_tensor_name(hf: &str) -> Option<&'static str> {
    Some(match hf {
        "linear_attn.in_proj_qkv" => "attn_qkv",
        "linear_attn.in_proj_z" => "attn_gate",
        "linear_attn.in_proj_b" => "ssm_beta",
        "linear_attn.in_proj_a" => "ssm_alpha",
        "linear_attn.in_proj_qkvz" => "ssm_in",
        "linear_attn.in_proj_ba" => "ssm_ba",
        "linear_attn.conv1d" => "ssm_conv1d",
        "linear_attn.A_log" => "ssm_a_log",
        "linear_attn.dt_bias" => "ssm_dt_bias",
        "linear_attn.norm" => "ssm_norm",
        "linear_attn.out_proj" => "ssm_out",
        "mlp.shared_expert_gate" => "ffn_gate_inp_shexp",
        "mlp.shared_expert.gate_proj" => "ffn_gate_shexp",
        "mlp.shared_expert.up_proj" => "ffn_up_shexp",
        "mlp.shared_expert.down_proj" => "ffn_down_shexp",
        _ => return tensors::layer_tensor_name(hf),
    })
}

/// As [`super::Family::gguf_alias`].
pub(super) fn gguf_alias(name: &str) -> Option<&'static str> {
    match name {
        "post_attention_norm.weight" => Some("ffn_norm.weight"),
        "ssm_a" => Some("ssm_a.weight"),
        "ssm_dt.bias" => Some("ssm_dt_bias.weight"),
        _ => None,
    }
}
