//! LFM2 with experts (8B-A1B, 24B-A2B): the layers of [`super::lfm2`], of which all but the first have experts that sigmoids
//! choose (LFM2 Technical Report, arXiv 2511.23404, section 2).

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, experts, lfm2, tensors};
use crate::{
    config::{Experts, ModelConfig},
    error::Result,
};

/// The family `lfm2moe`.
pub(super) struct Lfm2Moe;

impl Family for Lfm2Moe {
    fn name(&self) -> &'static str {
        "lfm2moe"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["lfm2_moe"]
    }

    fn tied_by_default(&self) -> bool {
        true
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = common::gguf_with_experts(self.name(), keys)?;
        lfm2::gguf_layers(keys, &mut config)?;
        let weighting = experts::gguf_sigmoid(keys, true)?;
        let experts = experts::gguf_experts(keys, weighting, config.intermediate_size)?;
        let dense_layers = keys.size_or_zero("leading_dense_block_count", config.n_layers)?.unwrap_or(0);
        config.experts = Some(Experts { dense_layers, ..experts });
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let hf = &hf.with_defaults(&[
            ("vocab_size", 65_536),
            ("hidden_size", 2048),
            ("intermediate_size", 7168),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("max_position_embeddings", 128_000),
        ]);
        let mut config = lfm2::hf_layers(self.name(), hf)?;
        let width = hf.size("moe_intermediate_size", common::limit::INTERMEDIATE)?.unwrap_or(1792);
        let defaults = experts::HfDefaults { count: 32, per_token: 4 };
        let experts = experts::hf(hf, &defaults, experts::hf_sigmoid(hf)?, width)?;
        let dense_layers = hf.count("num_dense_layers")?.unwrap_or(2);
        config.experts = Some(Experts { dense_layers, ..experts });
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        lfm2::attention_layer(config, tensors::expert_layer(config))
    }

    fn tensors_of_layer(&self, config: &ModelConfig, layer: usize) -> Vec<TensorSpec> {
        let mut specs = tensors::layer_of(config, layer);
        if let Some(experts) = config.experts_of(layer) {
            specs.push(tensors::optional("exp_probs_b.weight", &[experts.count]));
        }
        match config.is_recurrent(layer) {
            true => lfm2::recurrent_layer(config, specs),
            false => lfm2::attention_layer(config, specs),
        }
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        Some(match hf {
            "feed_forward.gate" => "ffn_gate_inp",
            "feed_forward.expert_bias" => "exp_probs_b",
            "feed_forward.experts.w1" => "ffn_gate_exps",
            "feed_forward.experts.w3" => "ffn_up_exps",
            "feed_forward.experts.w2" => "ffn_down_exps",
            "feed_forward.experts.gate_up_proj" => "ffn_gate_up_exps",
            "feed_forward.experts.down_proj" => "ffn_down_exps",
            _ => return lfm2::layer_tensor_name(hf),
        })
    }

    fn gguf_alias(&self, name: &str) -> Option<&'static str> {
        match name {
            "exp_probs_b.bias" => Some("exp_probs_b.weight"),
            _ => lfm2::gguf_alias(name),
        }
    }
}
