//! Llama and the models with the same layer: SmolLM2, TinyLlama, Llama 3 (scaled RoPE), Mistral (sliding window).

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, tensors};
use crate::{
    config::{ModelConfig, RopePairs},
    error::Result,
};

/// The family `llama`.
pub(super) struct Llama;

impl Family for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["llama", "mistral"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = common::gguf(self.name(), keys)?;
        // The converter permuted the rows of Q and K.
        config.rope_pairs = RopePairs::Adjacent;
        if let Some(scale) = keys.number("attention.scale")?.filter(|&scale| scale != 0.0) {
            config.attn_scale = common::factor("the attention scale", scale).map_err(common::bad(keys))?;
        }
        let window = keys.size_or_zero("attention.sliding_window", common::limit::CONTEXT)?;
        config.sliding_window.fill(window);
        common::drop_idle_windows(&mut config);
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let mut config = common::hf(self.name(), hf, &common::HfDefaults::default())?;
        common::hf_ropes(hf, &mut config)?;
        if hf.text("model_type")? == Some("mistral") {
            // A missing window means the class's default, 4096; only `null` means none.
            let window = hf.window(Some(4096))?;
            config.sliding_window = hf.windows(config.n_layers, window, |_| true)?;
        }
        common::drop_idle_windows(&mut config);
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        tensors::plain_layer(config)
    }
}
