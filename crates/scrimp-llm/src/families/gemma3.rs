//! Gemma 3, its text part: query/key norms, norms before and after each block, five sliding layers to one global.
//!
//! The factor of a norm is `1 + w`: Hugging Face files store `w`, GGUF files `1 + w`. GGUF has neither the pattern of
//! layers nor the local base: every sixth layer is global, and the other layers use base 10,000.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, gemma, tensors};
use crate::{config::ModelConfig, error::Result};

const PATTERN: usize = 6;
const GLOBAL_BASE: f64 = 1e6;
const LOCAL_BASE: f64 = 1e4;
/// Layers of the 27B model. GGUF does not have its attention scale.
const LAYERS_27B: usize = 62;

/// The family `gemma3`.
pub(super) struct Gemma3;

impl Family for Gemma3 {
    fn name(&self) -> &'static str {
        "gemma3"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["gemma3", "gemma3_text"]
    }

    fn tied_by_default(&self) -> bool {
        true
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let bad = common::bad(keys);
        let mut config = gemma::gguf(self.name(), keys, LAYERS_27B)?;
        gemma::gguf_ropes(keys, &mut config, GLOBAL_BASE, LOCAL_BASE)?;
        let window = keys.need_size("attention.sliding_window", common::limit::CONTEXT)?;
        let pattern =
            keys.size("attention.sliding_window_pattern", common::limit::LAYERS)?.unwrap_or(PATTERN);
        for (layer, span) in config.sliding_window.iter_mut().enumerate() {
            *span = Some(window).filter(|_| gemma::is_sliding(layer, pattern));
        }
        config.attn_logit_softcap = common::softcap(keys.number("attn_logit_softcapping")?).map_err(&bad)?;
        config.final_logit_softcap =
            common::softcap(keys.number("final_logit_softcapping")?).map_err(&bad)?;
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        // A multimodal model has the language model's configuration in an object of its own.
        let text = hf.object("text_config")?.unwrap_or(*hf);
        let hf = &text.with_defaults(&[
            ("vocab_size", 262_208),
            ("hidden_size", 2304),
            ("intermediate_size", 9216),
            ("num_hidden_layers", 26),
            ("num_attention_heads", 8),
            ("max_position_embeddings", 131_072),
        ]);
        let mut config = gemma::hf(self.name(), hf)?;
        let window = hf.window(Some(4096))?;
        let pattern = match hf.size("sliding_window_pattern", common::limit::LAYERS)? {
            Some(pattern) => pattern,
            None => hf.size("_sliding_window_pattern", common::limit::LAYERS)?.unwrap_or(PATTERN),
        };
        config.sliding_window =
            hf.windows(config.n_layers, window, |layer| gemma::is_sliding(layer, pattern))?;
        if hf.bool("use_bidirectional_attention")?.unwrap_or(false) {
            // EmbeddingGemma: the window extends to both sides.
            config.bidirectional = true;
            config.sliding_window.iter_mut().flatten().for_each(|window| *window = *window / 2 + 1);
        }
        gemma::hf_ropes(hf, &mut config, [GLOBAL_BASE, LOCAL_BASE])?;
        config.attn_logit_softcap =
            common::softcap(hf.number("attn_logit_softcapping")?).map_err(|what| hf.bad(what))?;
        config.final_logit_softcap =
            common::softcap(hf.number("final_logit_softcapping")?).map_err(|what| hf.bad(what))?;
        let plain = config.attn_logit_softcap.is_none() && config.head_dim.is_multiple_of(16);
        if config.bidirectional && !plain {
            return Err(hf.unsupported(
                "bidirectional attention with a soft cap, or with heads whose size is no multiple of 16",
                "use another model",
            ));
        }
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let mut layer = tensors::plain_layer(config);
        layer.extend([
            tensors::required("attn_q_norm.weight", &[config.head_dim]),
            tensors::required("attn_k_norm.weight", &[config.head_dim]),
            tensors::required("post_attention_norm.weight", &[config.hidden_size]),
            tensors::required("post_ffw_norm.weight", &[config.hidden_size]),
        ]);
        layer
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        gemma::layer_tensor_name(hf)
    }
}
