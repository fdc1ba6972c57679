//! Llama and the models with the same layer: SmolLM2, TinyLlama, Llama 3 (scaled RoPE), Mistral (sliding window); and
//! Mixtral, which has experts (arXiv 2401.04088, section 2.1).

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, experts, tensors};
use crate::{
    config::{ExpertWeighting, ModelConfig, RopePairs},
    error::Result,
};

/// The family `llama`.
pub(super) struct Llama;

impl Family for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["llama", "mistral", "mixtral"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        // Mixtral has the architecture `llama`, too.
        let mut config = match keys.size_or_zero("expert_count", experts::MAX_EXPERTS)? {
            Some(_) => experts::gguf(self.name(), keys, ExpertWeighting::SoftmaxOfChosen)?,
            None => common::gguf(self.name(), keys)?,
        };
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
        if hf.text("model_type")? == Some("mixtral") {
            let defaults = experts::HfDefaults { count: 8, per_token: 2 };
            config.experts =
                Some(experts::hf(hf, &defaults, ExpertWeighting::SoftmaxOfChosen, config.intermediate_size)?);
            let window = hf.window(None)?;
            config.sliding_window.fill(window);
        }
        if hf.text("model_type")? == Some("mistral") {
            // A missing window means the class's default, 4096; only `null` means none.
            let window = hf.window(Some(4096))?;
            config.sliding_window = hf.windows(config.n_layers, window, |_| true)?;
        }
        common::drop_idle_windows(&mut config);
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        match config.experts {
            Some(_) => tensors::expert_layer(config),
            None => tensors::plain_layer(config),
        }
    }

    /// Mixtral's names of transformers 4 and 5.
    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        match hf {
            "block_sparse_moe.gate" => Some("ffn_gate_inp"),
            "block_sparse_moe.experts.w1" => Some("ffn_gate_exps"),
            "block_sparse_moe.experts.w3" => Some("ffn_up_exps"),
            "block_sparse_moe.experts.w2" => Some("ffn_down_exps"),
            _ => tensors::layer_tensor_name(hf),
        }
    }
}
