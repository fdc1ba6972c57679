//! GLM-4 of 2025 (GLM-4-0414): norms before and after each block, RoPE on adjacent elements of one half of a head, biases
//! on Q, K and V, and gate and up in one matrix (ChatGLM, arXiv 2406.12793, section 2; the norms are in the model card).

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, tensors};
use crate::{
    config::{ModelConfig, RopePairs},
    error::Result,
};

/// The family `glm4`.
pub(super) struct Glm4;

impl Family for Glm4 {
    fn name(&self) -> &'static str {
        "glm4"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["glm4"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = common::gguf(self.name(), keys)?;
        config.rope_pairs = RopePairs::Adjacent;
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let defaults = common::HfDefaults {
            head_dim: Some(128),
            kv_heads: Some(2),
            eps: 0.000_000_156_25,
            ..Default::default()
        };
        let mut config = common::hf(self.name(), hf, &defaults)?;
        common::hf_ropes(hf, &mut config)?;
        config.rope_pairs = RopePairs::Adjacent;
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let mut layer = tensors::plain_layer(config);
        layer.retain(|spec| spec.name != "ffn_gate.weight");
        for spec in layer.iter_mut().filter(|spec| spec.name == "ffn_up.weight") {
            spec.shape[0] = 2 * config.intermediate_size;
        }
        layer.extend([
            tensors::required("post_attention_norm.weight", &[config.hidden_size]),
            tensors::required("post_ffw_norm.weight", &[config.hidden_size]),
        ]);
        layer
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        match hf {
            "post_self_attn_layernorm" => Some("post_attention_norm"),
            "post_mlp_layernorm" => Some("post_ffw_norm"),
            _ => tensors::layer_tensor_name(hf),
        }
    }
}
