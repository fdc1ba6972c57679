//! Gemma 2 (Gemma Team 2024, arXiv 2408.00118): norms before and after each block, every second layer with a sliding
//! window, soft caps on attention scores and logits.
//!
//! The factor of a norm is `1 + w`: Hugging Face files store `w`, GGUF files `1 + w`. GGUF does not have the pattern of
//! layers: layers 0, 2, 4 ... have the window.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, gemma, tensors};
use crate::{config::ModelConfig, error::Result};

const WINDOW: usize = 4096;
const ATTENTION_CAP: f64 = 50.0;
const FINAL_CAP: f64 = 30.0;
/// Layers of the 27B model. GGUF does not have its attention scale.
const LAYERS_27B: usize = 46;

/// The family `gemma2`.
pub(super) struct Gemma2;

impl Family for Gemma2 {
    fn name(&self) -> &'static str {
        "gemma2"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["gemma2"]
    }

    fn tied_by_default(&self) -> bool {
        true
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let bad = common::bad(keys);
        let mut config = gemma::gguf(self.name(), keys, LAYERS_27B)?;
        let window = keys.size("attention.sliding_window", common::limit::CONTEXT)?.unwrap_or(WINDOW);
        for (layer, span) in config.sliding_window.iter_mut().enumerate() {
            *span = Some(window).filter(|_| layer.is_multiple_of(2));
        }
        let cap = keys.number("attn_logit_softcapping")?.or(Some(ATTENTION_CAP));
        config.attn_logit_softcap = common::softcap(cap).map_err(&bad)?;
        let cap = keys.number("final_logit_softcapping")?.or(Some(FINAL_CAP));
        config.final_logit_softcap = common::softcap(cap).map_err(&bad)?;
        common::drop_idle_windows(&mut config);
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        if hf.bool("use_bidirectional_attention")?.unwrap_or(false) {
            return Err(
                hf.unsupported("attention in both directions is not supported", "use a decoder model")
            );
        }
        let mut config = gemma::hf(self.name(), hf)?;
        common::hf_ropes(hf, &mut config)?;
        let window = hf.window(Some(WINDOW))?;
        config.sliding_window = hf.windows(config.n_layers, window, |layer| layer.is_multiple_of(2))?;
        let cap = |key: &str, default: f64| -> Result<Option<f32>> {
            let cap = if hf.is_null(key) { None } else { hf.number(key)?.or(Some(default)) };
            common::softcap(cap).map_err(|what| hf.bad(what))
        };
        config.attn_logit_softcap = cap("attn_logit_softcapping", ATTENTION_CAP)?;
        config.final_logit_softcap = cap("final_logit_softcapping", FINAL_CAP)?;
        common::drop_idle_windows(&mut config);
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let mut layer = tensors::plain_layer(config);
        layer.extend([
            tensors::required("post_attention_norm.weight", &[config.hidden_size]),
            tensors::required("post_ffw_norm.weight", &[config.hidden_size]),
        ]);
        layer
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        gemma::layer_tensor_name(hf)
    }
}
