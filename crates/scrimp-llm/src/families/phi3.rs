//! Phi-3, Phi-3.5 and Phi-4-mini: Q, K and V in one matrix, gate and up in another, LongRoPE, partial rotation.
//!
//! `attn_qkv` has the rows of Q, then K, then V. `ffn_up` has the rows of the gate, then those of up.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, tensors};
use crate::{
    config::{LongRope, ModelConfig},
    error::Result,
};

/// Original context of files that do not name it, as in Hugging Face's class.
const ORIGINAL_CONTEXT: usize = 4096;

/// The family `phi3`.
pub(super) struct Phi3;

impl Family for Phi3 {
    fn name(&self) -> &'static str {
        "phi3"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["phi3"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = common::gguf(self.name(), keys)?;
        let dim = config.rope.rotary_dim();
        let base = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
        let context = config.context_length;
        let short = keys.f32_tensor("rope_factors_short.weight", dim / 2)?;
        let long = keys.f32_tensor("rope_factors_long.weight", dim / 2)?;
        if short.is_some() {
            config.rope = keys.rope(dim, base, context, short)?;
        }
        if long.is_some() {
            let original = keys.size("rope.scaling.original_context_length", common::limit::CONTEXT)?;
            config.rope_long = Some(LongRope {
                original_context: original.unwrap_or(ORIGINAL_CONTEXT),
                rope: keys.rope(dim, base, context, long)?,
            });
        }
        let window = keys.size_or_zero("attention.sliding_window", common::limit::CONTEXT)?;
        config.sliding_window.fill(window);
        common::drop_idle_windows(&mut config);
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let defaults = common::HfDefaults { eps: 1e-5, ..Default::default() };
        let mut config = common::hf(self.name(), hf, &defaults)?;
        let hf = hf.with_defaults(&[("original_max_position_embeddings", ORIGINAL_CONTEXT)]);
        common::hf_ropes(&hf, &mut config)?;
        let window = hf.window(None)?;
        config.sliding_window = hf.windows(config.n_layers, window, |_| true)?;
        common::drop_idle_windows(&mut config);
        Ok(config)
    }

    fn layer_tensors(&self, c: &ModelConfig) -> Vec<TensorSpec> {
        let (h, q, kv, f) = (c.hidden_size, c.q_dim(), c.kv_dim(), c.intermediate_size);
        vec![
            tensors::required("attn_norm.weight", &[h]),
            tensors::required("attn_qkv.weight", &[q + 2 * kv, h]),
            tensors::required("attn_output.weight", &[h, q]),
            tensors::required("ffn_norm.weight", &[h]),
            tensors::required("ffn_up.weight", &[2 * f, h]),
            tensors::required("ffn_down.weight", &[h, f]),
        ]
    }
}
