//! Mistral 3 and Ministral 3, their text part: Llama's layer with YaRN; Ministral's queries grow with the position
//! (Llama 4's temperature: `1 + beta ln(1 + floor(position / original context))`).

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, rope, tensors};
use crate::{
    config::{AttentionTemperature, ModelConfig, RopePairs},
    error::Result,
};

/// The family `mistral3`.
pub(super) struct Mistral3;

impl Family for Mistral3 {
    fn name(&self) -> &'static str {
        "mistral3"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["mistral3", "ministral3"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let bad = common::bad(keys);
        let mut config = common::gguf(self.name(), keys)?;
        // The converter permuted the rows of Q and K.
        config.rope_pairs = RopePairs::Adjacent;
        if let Some(scale) = keys.number("attention.scale")?.filter(|&scale| scale != 0.0) {
            config.attn_scale = common::factor("the attention scale", scale).map_err(&bad)?;
        }
        // YaRN's two scales are equal, so that sine and cosine have no factor.
        if keys.number("rope.scaling.yarn_log_multiplier")?.is_some_and(|multiplier| multiplier != 0.0) {
            let factor = keys.positive("rope.scaling.factor")?.unwrap_or(1.0);
            config.rope.magnitude /= rope::yarn_magnitude(factor, 1.0) as f32;
        }
        let beta = keys.number("attention.temperature_scale")?.filter(|&beta| beta != 0.0);
        let original = keys.size("rope.scaling.original_context_length", common::limit::CONTEXT)?;
        config.attn_temperature = temperature(beta, original, config.context_length).map_err(&bad)?;
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        // The multimodal model keeps the language model's numbers in an object of their own.
        let hf = &hf.object("text_config")?.unwrap_or(*hf);
        let defaults = common::HfDefaults { head_dim: Some(128), eps: 1e-5, ..Default::default() };
        let mut config = common::hf(self.name(), hf, &defaults)?;
        common::hf_ropes(hf, &mut config)?;
        let window = hf.window(None)?;
        config.sliding_window = hf.windows(config.n_layers, window, |_| true)?;
        common::drop_idle_windows(&mut config);
        let rope = hf.rope_object("full_attention")?;
        let beta = rope.map(|rope| rope.number("llama_4_scaling_beta")).transpose()?.flatten();
        let key = "original_max_position_embeddings";
        let original = rope.map(|rope| rope.size(key, common::limit::CONTEXT)).transpose()?.flatten();
        let beta = beta.filter(|&beta| beta != 0.0);
        config.attn_temperature =
            temperature(beta, original, config.context_length).map_err(|what| hf.bad(what))?;
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        tensors::plain_layer(config)
    }
}

fn temperature(
    beta: Option<f64>,
    original: Option<usize>,
    context: usize,
) -> Result<Option<AttentionTemperature>, String> {
    let beta = beta.map(|beta| common::factor("the attention temperature", beta)).transpose()?;
    Ok(beta.map(|beta| AttentionTemperature { beta, original_context: original.unwrap_or(context) }))
}
