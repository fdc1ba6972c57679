//! Qwen 3.5 and 3.6 (dense), the text part: three layers with the gated delta rule to one with gated attention
//! ([`super::gated_delta`]), norms by `1 + w` in Hugging Face files. GGUF files have the value heads in another order.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, gated_delta, tensors};
use crate::{config::ModelConfig, error::Result};

/// The family `qwen35`.
pub(super) struct Qwen35;

impl Family for Qwen35 {
    fn name(&self) -> &'static str {
        "qwen35"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["qwen3_5", "qwen3_5_text"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = common::gguf(self.name(), keys)?;
        gated_delta::gguf(keys, &mut config, true)?;
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        // A multimodal model has the language model's configuration in an object of its own.
        let hf = &hf.object("text_config")?.unwrap_or(*hf);
        let defaults =
            common::HfDefaults { head_dim: Some(256), kv_heads: Some(4), ..common::HfDefaults::default() };
        let mut config = common::hf(self.name(), hf, &defaults)?;
        gated_delta::hf(hf, &mut config)?;
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        gated_delta::attention_layer(config, tensors::plain_layer(config))
    }

    fn recurrent_layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        gated_delta::recurrent_layer(config, tensors::plain_layer(config))
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        gated_delta::layer_tensor_name(hf)
    }

    fn gguf_alias(&self, name: &str) -> Option<&'static str> {
        gated_delta::gguf_alias(name)
    }
}
