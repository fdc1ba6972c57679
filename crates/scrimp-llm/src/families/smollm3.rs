//! SmolLM3: Llama's layer, where every fourth layer has no positions (NoPE, Yang et al. 2025, arXiv 2501.18795, "RNoPE").
//!
//! GGUF does not name the layers: `(layer + 1) % 4 == 0` has no RoPE.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, tensors};
use crate::{
    config::{ModelConfig, RopePairs},
    error::Result,
};

const INTERVAL: usize = 4;

/// The family `smollm3`.
pub(super) struct SmolLm3;

/// Every `interval`th layer has no RoPE.
fn has_rope(layer: usize, interval: usize) -> bool {
    !(layer + 1).is_multiple_of(interval)
}

impl Family for SmolLm3 {
    fn name(&self) -> &'static str {
        "smollm3"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["smollm3"]
    }

    fn tied_by_default(&self) -> bool {
        true
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = common::gguf(self.name(), keys)?;
        // The converter permuted the rows of Q and K.
        config.rope_pairs = RopePairs::Adjacent;
        config.rope_layers = (0..config.n_layers).map(|layer| has_rope(layer, INTERVAL)).collect();
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let mut config = common::hf(self.name(), hf, &common::HfDefaults::default())?;
        common::hf_ropes(hf, &mut config)?;
        let interval = hf.size("no_rope_layer_interval", common::limit::LAYERS)?.unwrap_or(INTERVAL);
        config.rope_layers = match hf.flags("no_rope_layers", config.n_layers)? {
            // Despite the name, 1 is a layer with RoPE.
            Some(layers) => layers,
            None => (0..config.n_layers).map(|layer| has_rope(layer, interval)).collect(),
        };
        if hf.bool("use_sliding_window")?.unwrap_or(false) {
            let (window, rope) = (hf.window(None)?, config.rope_layers.clone());
            config.sliding_window = hf.windows(config.n_layers, window, |layer| !rope[layer])?;
            common::drop_idle_windows(&mut config);
        }
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        tensors::plain_layer(config)
    }
}
