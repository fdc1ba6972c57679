//! What Gemma 2 and Gemma 3 share.

use super::{GgufKeys, HfConfig, common, tensors};
use crate::{
    config::{Activation, ModelConfig},
    error::Result,
};

/// The shared part of a GGUF file's configuration. `layers_27b` is the number of layers of the 27B model: GGUF does not
/// have its attention scale.
pub(super) fn gguf(family: &'static str, keys: &GgufKeys<'_>, layers_27b: usize) -> Result<ModelConfig> {
    let mut config = common::gguf(family, keys)?;
    config.activation = Activation::GeluTanh;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    if config.n_layers == layers_27b {
        config.attn_scale = 1.0 / ((config.hidden_size / config.n_heads) as f32).sqrt();
    }
    Ok(config)
}

/// The shared part of a `config.json`.
pub(super) fn hf(family: &'static str, hf: &HfConfig<'_>) -> Result<ModelConfig> {
    let key = if hf.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    let defaults = common::HfDefaults {
        head_dim: Some(256),
        kv_heads: Some(4),
        activation: Activation::GeluTanh,
        activation_key: key,
        ..Default::default()
    };
    let mut config = common::hf(family, hf, &defaults)?;
    config.norm_plus_one = true;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    let scalar = hf.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    config.attn_scale =
        common::factor("the attention scale", 1.0 / scalar.sqrt()).map_err(|what| hf.bad(what))?;
    Ok(config)
}

/// GGUF's name of a layer's tensor; the norms have other names than in most families.
pub(super) fn layer_tensor_name(hf: &str) -> Option<&'static str> {
    match hf {
        "post_attention_layernorm" => Some("post_attention_norm"),
        "pre_feedforward_layernorm" => Some("ffn_norm"),
        "post_feedforward_layernorm" => Some("post_ffw_norm"),
        _ => tensors::layer_tensor_name(hf),
    }
}
