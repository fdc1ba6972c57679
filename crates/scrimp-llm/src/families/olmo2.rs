//! OLMo 2 (arXiv 2501.00656) and OLMo 3: norms only after each block, and over all queries and all keys of a token.
//!
//! OLMo 3 adds a sliding window to three layers of four; YaRN's scaling applies to the others only. Both are `olmo2`
//! in GGUF.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, rope, tensors};
use crate::{config::ModelConfig, error::Result};

/// Every `PATTERN`th layer of OLMo 3 has full attention.
const PATTERN: usize = 4;
const BASE: f64 = 500_000.0;

/// The family `olmo2`.
pub(super) struct Olmo2;

fn is_sliding(layer: usize, pattern: usize) -> bool {
    !(layer + 1).is_multiple_of(pattern)
}

impl Family for Olmo2 {
    fn name(&self) -> &'static str {
        "olmo2"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["olmo2", "olmo3"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = common::gguf(self.name(), keys)?;
        let Some(window) = keys.size_or_zero("attention.sliding_window", common::limit::CONTEXT)? else {
            return Ok(config);
        };
        let pattern =
            keys.size("attention.sliding_window_pattern", common::limit::LAYERS)?.unwrap_or(PATTERN);
        for (layer, span) in config.sliding_window.iter_mut().enumerate() {
            *span = Some(window).filter(|_| is_sliding(layer, pattern));
        }
        let base = match keys.positive("rope.freq_base_swa")? {
            Some(base) => base,
            None => keys.positive("rope.freq_base")?.unwrap_or(BASE),
        };
        let local = rope::rope(config.rope.rotary_dim(), base, &rope::Scaling::None, None, 1.0);
        config.rope_local = Some(local.map_err(common::bad(keys))?);
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let defaults = common::HfDefaults { eps: 1e-5, ..Default::default() };
        let mut config = common::hf(self.name(), hf, &defaults)?;
        let (head_dim, context) = (config.head_dim, config.context_length);
        if hf.text("model_type")? != Some("olmo3") {
            common::hf_ropes(hf, &mut config)?;
            return Ok(config);
        }
        let object = hf.rope_object("full_attention")?;
        let base = hf.rope_base(object, "full_attention", "rope_theta")?.unwrap_or(BASE);
        (config.rope, config.rope_long) = hf.ropes_with(object, base, head_dim, context)?;
        let parameters = hf.object("rope_parameters")?;
        let object = parameters.map(|p| p.object("sliding_attention")).transpose()?.flatten();
        let local = object.map(|o| o.positive("rope_theta")).transpose()?.flatten().unwrap_or(base);
        config.rope_local = Some(hf.ropes_with(object, local, head_dim, context)?.0);
        let window = hf.window(Some(4096))?;
        config.sliding_window = hf.windows(config.n_layers, window, |layer| is_sliding(layer, PATTERN))?;
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let mut layer = tensors::plain_layer(config);
        layer.retain(|spec| !matches!(spec.name.as_str(), "attn_norm.weight" | "ffn_norm.weight"));
        layer.extend([
            tensors::required("attn_q_norm.weight", &[config.q_dim()]),
            tensors::required("attn_k_norm.weight", &[config.kv_dim()]),
            tensors::required("post_attention_norm.weight", &[config.hidden_size]),
            tensors::required("post_ffw_norm.weight", &[config.hidden_size]),
        ]);
        layer
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        match hf {
            "post_attention_layernorm" => Some("post_attention_norm"),
            "post_feedforward_layernorm" => Some("post_ffw_norm"),
            _ => tensors::layer_tensor_name(hf),
        }
    }
}
