//! Qwen 3 (dense): Llama's layer with RMSNorm over each query and key head, heads wider than `hidden / heads`.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, qwen2, tensors};
use crate::{config::ModelConfig, error::Result};

/// The family `qwen3`.
pub(super) struct Qwen3;

impl Family for Qwen3 {
    fn name(&self) -> &'static str {
        "qwen3"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["qwen3"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        common::gguf(self.name(), keys)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let defaults = common::HfDefaults { head_dim: Some(128), ..Default::default() };
        let mut config = common::hf(self.name(), hf, &defaults)?;
        common::hf_ropes(hf, &mut config)?;
        qwen2::qwen_windows(hf, &mut config)?;
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let mut layer = tensors::plain_layer(config);
        layer.extend(tensors::head_norms(config));
        layer
    }
}
