//! Qwen3-Next: the layers of [`super::qwen35moe`] with other tensors. Hugging Face files have the rows of Q, K, V and Z of a key
//! head below each other, and both kinds of files have the rows of beta and alpha so. GGUF files keep the order of value heads.

use super::{Family, GgufKeys, HfConfig, TensorSpec, experts, gated_delta, tensors};
use crate::{
    config::{ExpertWeighting, ModelConfig},
    error::Result,
};

/// The family `qwen3next`.
pub(super) struct Qwen3Next;

impl Family for Qwen3Next {
    fn name(&self) -> &'static str {
        "qwen3next"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["qwen3_next"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = experts::gguf(self.name(), keys, ExpertWeighting::SoftmaxOfChosen)?;
        gated_delta::gguf(keys, &mut config, false)?;
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let defaults = experts::HfDefaults { count: 512, per_token: 10 };
        gated_delta::hf_with_experts(self.name(), hf, &defaults)
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
