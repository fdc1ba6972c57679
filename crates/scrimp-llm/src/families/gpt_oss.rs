//! gpt-oss: experts with biases and a clamped SwiGLU, attention sinks, biases in attention, and windows in every second
//! layer (arXiv 2508.10925, section 2).
//!
//! Hugging Face files store the gate and up of an expert in alternating rows, transposed where they are floats.

use super::{Family, GgufKeys, HfConfig, Need, TensorSpec, common, experts, tensors};
use crate::{
    config::{Activation, ExpertWeighting, ModelConfig},
    error::Result,
};
use scrimp_kernels::ops::{CLAMP, CLAMPED_SLOPE};

/// The family `gpt-oss`.
pub(super) struct GptOss;

const WINDOW: usize = 128;

impl Family for GptOss {
    fn name(&self) -> &'static str {
        "gpt-oss"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["gpt_oss"]
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = experts::gguf(self.name(), keys, ExpertWeighting::SoftmaxOfChosen)?;
        config.activation = Activation::ClampedSilu;
        let window = keys.size("attention.sliding_window", common::limit::CONTEXT)?.unwrap_or(WINDOW);
        for (layer, span) in config.sliding_window.iter_mut().enumerate() {
            *span = (layer % 2 == 0).then_some(window);
        }
        common::drop_idle_windows(&mut config);
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let defaults =
            common::HfDefaults { head_dim: Some(64), kv_heads: Some(8), eps: 1e-5, ..Default::default() };
        let mut config = common::hf(self.name(), hf, &defaults)?;
        common::hf_ropes(hf, &mut config)?;
        let near = |key: &str, value: f32| -> Result<bool> {
            Ok(hf.number(key)?.is_none_or(|given| (given as f32 - value).abs() < 1e-6))
        };
        if !near("swiglu_limit", CLAMP)? || !near("swiglu_alpha", CLAMPED_SLOPE)? {
            return Err(hf.unsupported(
                "another bound or slope of SwiGLU is not supported",
                "the published models of gpt-oss have a bound of 7 and a slope of 1.702",
            ));
        }
        config.activation = Activation::ClampedSilu;
        let window = hf.window(Some(WINDOW))?;
        config.sliding_window = hf.windows(config.n_layers, window, |layer| layer % 2 == 0)?;
        common::drop_idle_windows(&mut config);
        let defaults = experts::HfDefaults { count: 128, per_token: 4 };
        config.experts =
            Some(experts::hf(hf, &defaults, ExpertWeighting::SoftmaxOfChosen, config.intermediate_size)?);
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let (h, f) = (config.hidden_size, config.intermediate_size);
        let experts = config.experts.map_or(0, |experts| experts.count);
        let mut layer = tensors::expert_layer(config);
        layer.iter_mut().for_each(|spec| spec.need = Need::Required);
        layer.extend([
            tensors::required("attn_sinks.weight", &[config.n_heads]),
            tensors::required("ffn_gate_inp.bias", &[experts]),
            tensors::required("ffn_gate_exps.bias", &[experts, f]),
            tensors::required("ffn_up_exps.bias", &[experts, f]),
            tensors::required("ffn_down_exps.bias", &[experts, h]),
        ]);
        layer
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        match hf {
            "self_attn.sinks" => Some("attn_sinks"),
            "mlp.router" => Some("ffn_gate_inp"),
            "mlp.experts.gate_up_proj" => Some("ffn_gate_up_exps_columns"),
            "mlp.experts.down_proj" => Some("ffn_down_exps_columns"),
            "mlp.experts.gate_up_proj_bias" => Some("ffn_gate_up_exps_bias"),
            "mlp.experts.down_proj_bias" => Some("ffn_down_exps_bias"),
            "mlp.experts.gate_up_proj_blocks" => Some("ffn_gate_up_exps_blocks"),
            "mlp.experts.gate_up_proj_scales" => Some("ffn_gate_up_exps_scales"),
            "mlp.experts.down_proj_blocks" => Some("ffn_down_exps_blocks"),
            "mlp.experts.down_proj_scales" => Some("ffn_down_exps_scales"),
            _ => tensors::layer_tensor_name(hf),
        }
    }

    /// The norm before the experts has the name of Gemma's norm after attention.
    fn gguf_alias(&self, name: &str) -> Option<&'static str> {
        (name == "post_attention_norm.weight").then_some("ffn_norm.weight")
    }
}
