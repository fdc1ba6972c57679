//! OLMoE: experts whose weights are not normalized, and RMSNorm over all heads of queries and of keys together
//! (arXiv 2409.02060, sections 2 and 4.1).

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, experts, tensors};
use crate::{
    config::{ExpertWeighting, ModelConfig},
    error::Result,
};

/// The family `olmoe`.
pub(super) struct Olmoe;

impl Family for Olmoe {
    fn name(&self) -> &'static str {
        "olmoe"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["olmoe"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let clamp = keys.number("attention.clamp_kqv")?;
        if clamp.is_some_and(|clamp| clamp > 0.0) {
            return Err(keys.file().source().unsupported(CLAMP, CLAMP_HINT));
        }
        experts::gguf(self.name(), keys, ExpertWeighting::Softmax)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        if hf.get("clip_qkv").is_some() {
            return Err(hf.unsupported(CLAMP, CLAMP_HINT));
        }
        let defaults = common::HfDefaults { eps: 1e-5, ..Default::default() };
        let mut config = common::hf(self.name(), hf, &defaults)?;
        common::hf_ropes(hf, &mut config)?;
        let defaults = experts::HfDefaults { count: 64, per_token: 8 };
        config.experts =
            Some(experts::hf(hf, &defaults, experts::normalized(hf)?, config.intermediate_size)?);
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let mut layer = tensors::expert_layer(config);
        layer.push(tensors::required("attn_q_norm.weight", &[config.q_dim()]));
        layer.push(tensors::required("attn_k_norm.weight", &[config.kv_dim()]));
        layer
    }
}

const CLAMP: &str = "bounds on queries, keys and values are not supported";
const CLAMP_HINT: &str = "the published models of OLMoE have none";
