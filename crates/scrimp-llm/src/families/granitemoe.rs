//! Granite 3 with experts: Granite's four factors, and experts whose weights are a softmax over the chosen ones.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, experts, granite, tensors};
use crate::{
    config::{ExpertWeighting, ModelConfig},
    error::Result,
};

/// The family `granitemoe`.
pub(super) struct GraniteMoe;

impl Family for GraniteMoe {
    fn name(&self) -> &'static str {
        "granitemoe"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["granitemoe"]
    }

    fn tied_by_default(&self) -> bool {
        true
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = experts::gguf(self.name(), keys, ExpertWeighting::SoftmaxOfChosen)?;
        granite::gguf_factors(keys, &mut config)?;
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let mut config = common::hf(self.name(), hf, &common::HfDefaults::default())?;
        common::hf_ropes(hf, &mut config)?;
        granite::hf_factors(hf, &mut config)?;
        let defaults = experts::HfDefaults { count: 8, per_token: 2 };
        config.experts =
            Some(experts::hf(hf, &defaults, ExpertWeighting::SoftmaxOfChosen, config.intermediate_size)?);
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        tensors::ungated(tensors::expert_layer(config))
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        layer_tensor_name(hf)
    }
}

/// The names of transformers 4 and 5.
pub(super) fn layer_tensor_name(hf: &str) -> Option<&'static str> {
    match hf {
        "block_sparse_moe.router.layer" | "block_sparse_moe.router" => Some("ffn_gate_inp"),
        "block_sparse_moe.input_linear" | "block_sparse_moe.experts.gate_up_proj" => Some("ffn_gate_up_exps"),
        "block_sparse_moe.output_linear" | "block_sparse_moe.experts.down_proj" => Some("ffn_down_exps"),
        _ => tensors::layer_tensor_name(hf),
    }
}
