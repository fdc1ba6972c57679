//! Qwen 3 MoE: the attention of Qwen 3, and experts instead of the feed-forward block (Qwen3 Technical Report,
//! arXiv 2505.09388, section 2).

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, experts, qwen2, tensors};
use crate::{config::ModelConfig, error::Result};

/// The family `qwen3moe`.
pub(super) struct Qwen3Moe;

impl Family for Qwen3Moe {
    fn name(&self) -> &'static str {
        "qwen3moe"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["qwen3_moe"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        experts::gguf(self.name(), keys, crate::config::ExpertWeighting::SoftmaxOfChosen)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let mut config = common::hf(self.name(), hf, &common::HfDefaults::default())?;
        common::hf_ropes(hf, &mut config)?;
        qwen2::qwen_windows(hf, &mut config)?;
        experts::all_layers(hf)?;
        config.intermediate_size =
            hf.size("moe_intermediate_size", common::limit::INTERMEDIATE)?.unwrap_or(768);
        let defaults = experts::HfDefaults { count: 128, per_token: 8 };
        config.experts =
            Some(experts::hf(hf, &defaults, experts::normalized(hf)?, config.intermediate_size)?);
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let mut layer = tensors::expert_layer(config);
        layer.extend(tensors::head_norms(config));
        layer
    }
}
