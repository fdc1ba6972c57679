//! Qwen 2 and 2.5: Llama's layer with biases on Q, K and V.

use super::{Family, GgufKeys, HfConfig, Need, TensorSpec, common, tensors};
use crate::{config::ModelConfig, error::Result};

/// The family `qwen2`.
pub(super) struct Qwen2;

impl Family for Qwen2 {
    fn name(&self) -> &'static str {
        "qwen2"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["qwen2"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        common::gguf(self.name(), keys)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let mut config = common::hf(self.name(), hf, &common::HfDefaults::default())?;
        common::hf_ropes(hf, &mut config)?;
        qwen_windows(hf, &mut config)?;
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let mut layer = tensors::plain_layer(config);
        for spec in &mut layer {
            if matches!(spec.name.as_str(), "attn_q.bias" | "attn_k.bias" | "attn_v.bias") {
                spec.need = Need::Required;
            }
        }
        layer
    }
}

/// Qwen's windows: only with `use_sliding_window`, and only from layer `max_window_layers` on.
pub(super) fn qwen_windows(hf: &HfConfig<'_>, config: &mut ModelConfig) -> Result<()> {
    if hf.bool("use_sliding_window")?.unwrap_or(false) {
        let window = hf.window(Some(4096))?;
        let first = hf.count("max_window_layers")?.unwrap_or(28);
        config.sliding_window = hf.windows(config.n_layers, window, |layer| layer >= first)?;
        common::drop_idle_windows(config);
    }
    Ok(())
}
