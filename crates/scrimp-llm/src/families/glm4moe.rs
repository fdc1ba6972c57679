//! GLM-4.5 and GLM-4.6: experts that sigmoids choose beside a shared one, after one or more dense layers; biases on Q, K and
//! V, RoPE on one half of a head, and in the larger models norms of query and key heads (GLM-4.5, arXiv 2508.06471,
//! section 2.1).

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, experts, tensors};
use crate::{
    config::{Experts, ModelConfig},
    error::Result,
};

/// The rotated share of a head.
const ROTATED: f64 = 0.5;

/// The family `glm4moe`.
pub(super) struct Glm4Moe;

impl Family for Glm4Moe {
    fn name(&self) -> &'static str {
        "glm4moe"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["glm4_moe"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = common::gguf_with_experts(self.name(), keys)?;
        common::drop_predictors(keys, &mut config)?;
        let weighting = experts::gguf_sigmoid(keys, false)?;
        let experts = experts::gguf_experts(keys, weighting, config.intermediate_size)?;
        let shared = keys.size_or_zero("expert_shared_count", experts::MAX_EXPERTS)?;
        let dense_layers = keys.size_or_zero("leading_dense_block_count", config.n_layers)?.unwrap_or(0);
        let shared = shared.map(|count| count * experts.width);
        config.experts = Some(Experts { shared, dense_layers, ..experts });
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let defaults = common::HfDefaults { kv_heads: Some(8), eps: 1e-5, ..Default::default() };
        let mut config = common::hf(self.name(), hf, &defaults)?;
        (config.rope, config.rope_long) =
            hf.partial_ropes(config.head_dim, ROTATED, config.context_length)?;
        let width = hf.size("moe_intermediate_size", common::limit::INTERMEDIATE)?.unwrap_or(1408);
        let count = hf.size("n_routed_experts", experts::MAX_EXPERTS)?.unwrap_or(128);
        let defaults = experts::HfDefaults { count, per_token: 8 };
        let experts = experts::hf(hf, &defaults, experts::hf_sigmoid(hf)?, width)?;
        let shared = hf.count("n_shared_experts")?.unwrap_or(1);
        if shared > experts::MAX_EXPERTS {
            return Err(hf.bad(format!("{shared} shared experts; {} are allowed", experts::MAX_EXPERTS)));
        }
        let shared = Some(shared * width).filter(|&width| width > 0);
        let dense_layers = hf.count("first_k_dense_replace")?.unwrap_or(1);
        config.experts = Some(Experts { shared, dense_layers, ..experts });
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        tensors::expert_layer(config)
    }

    fn tensors_of_layer(&self, config: &ModelConfig, layer: usize) -> Vec<TensorSpec> {
        let mut specs = tensors::ungated(tensors::layer_of(config, layer));
        let norms = ["attn_q_norm.weight", "attn_k_norm.weight"];
        specs.extend(norms.map(|name| tensors::optional(name, &[config.head_dim])));
        if let Some(experts) = config.experts_of(layer) {
            specs.push(tensors::required("exp_probs_b.weight", &[experts.count]));
        }
        specs
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        Some(match hf {
            "mlp.gate.e_score_correction_bias" => "exp_probs_b",
            "mlp.shared_experts.gate_proj" => "ffn_gate_shexp",
            "mlp.shared_experts.up_proj" => "ffn_up_shexp",
            "mlp.shared_experts.down_proj" => "ffn_down_shexp",
            _ => return tensors::layer_tensor_name(hf),
        })
    }

    fn gguf_alias(&self, name: &str) -> Option<&'static str> {
        match name {
            "exp_probs_b.bias" => Some("exp_probs_b.weight"),
            // The norm before the experts has the name of Gemma's norm after attention.
            "post_attention_norm.weight" => Some("ffn_norm.weight"),
            _ => None,
        }
    }
}
