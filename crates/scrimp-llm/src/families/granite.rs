//! Granite 3: Llama's layer with four factors, on embeddings, attention scores, the
//! output of each block, and logits (Granite 3.0 Language Models, IBM 2024, section 2; μP's multipliers).

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, tensors};
use crate::{
    config::{ModelConfig, RopePairs},
    error::Result,
};

/// The family `granite`.
pub(super) struct Granite;

impl Family for Granite {
    fn name(&self) -> &'static str {
        "granite"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["granite"]
    }

    fn tied_by_default(&self) -> bool {
        true
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = common::gguf(self.name(), keys)?;
        gguf_factors(keys, &mut config)?;
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let mut config = common::hf(self.name(), hf, &common::HfDefaults::default())?;
        common::hf_ropes(hf, &mut config)?;
        hf_factors(hf, &mut config)?;
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        tensors::plain_layer(config)
    }
}

/// The four factors, and the properties of the converter's files.
pub(super) fn gguf_factors(keys: &GgufKeys<'_>, config: &mut ModelConfig) -> Result<()> {
    let bad = common::bad(keys);
    // The converter permuted the rows of Q and K.
    config.rope_pairs = RopePairs::Adjacent;
    // 0 means "no factor", as in llama.cpp.
    let factor = |key: &str| -> Result<Option<f32>> {
        let value = keys.number(key)?.filter(|&value| value != 0.0);
        value.map(|value| common::factor(key, value)).transpose().map_err(&bad)
    };
    config.embedding_scale = factor("embedding_scale")?.unwrap_or(1.0);
    config.attn_scale = factor("attention.scale")?.unwrap_or(config.attn_scale);
    config.residual_scale = factor("residual_scale")?.unwrap_or(1.0);
    config.logit_scale = 1.0 / factor("logit_scale")?.unwrap_or(1.0);
    if keys.flag("rope.scaling.finetuned")? == Some(false) {
        config.rope_layers.fill(false);
    }
    Ok(())
}

/// The four factors.
pub(super) fn hf_factors(hf: &HfConfig<'_>, config: &mut ModelConfig) -> Result<()> {
    let factor = |key: &str| -> Result<f32> {
        let value = hf.positive(key)?.unwrap_or(1.0);
        common::factor(key, value).map_err(|what| hf.bad(what))
    };
    config.embedding_scale = factor("embedding_multiplier")?;
    config.attn_scale = factor("attention_multiplier")?;
    config.residual_scale = factor("residual_multiplier")?;
    config.logit_scale = 1.0 / factor("logits_scaling")?;
    Ok(())
}
