//! Qwen 3.5 and 3.6 with experts, the text part: the layers of [`super::qwen35`] with experts and a shared expert.

use super::{Family, GgufKeys, HfConfig, TensorSpec, experts, gated_delta, tensors};
use crate::{
    config::{ExpertWeighting, ModelConfig},
    error::Result,
};

/// The family `qwen35moe`.
pub(super) struct Qwen35Moe;

impl Family for Qwen35Moe {
    fn name(&self) -> &'static str {
        "qwen35moe"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["qwen3_5_moe", "qwen3_5_moe_text"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = experts::gguf(self.name(), keys, ExpertWeighting::SoftmaxOfChosen)?;
        gated_delta::gguf(keys, &mut config, true)?;
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        // A multimodal model has the language model's configuration in an object of its own.
        let hf = hf.object("text_config")?.unwrap_or(*hf);
        let defaults = experts::HfDefaults { count: 256, per_token: 8 };
        gated_delta::hf_with_experts(self.name(), &hf, &defaults)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        gated_delta::attention_layer(config, tensors::expert_layer(config))
    }

    fn recurrent_layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        gated_delta::recurrent_layer(config, tensors::expert_layer(config))
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        gated_delta::layer_tensor_name(hf)
    }

    fn gguf_alias(&self, name: &str) -> Option<&'static str> {
        gated_delta::gguf_alias(name)
    }
}
