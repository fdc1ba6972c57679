//! Granite 4: layers of Mamba-2 beside attention, or attention alone, with or without RoPE; a gated block, beside experts in
//! some models; and Granite's four factors (IBM Granite 4.0 model cards, 2025).
//!
//! Hugging Face files have gate and up of a block in one matrix.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, experts, granite, granitemoe, tensors};
use crate::{
    config::{ExpertWeighting, Experts, ModelConfig, RecurrenceKind},
    error::Result,
};
use scrimp_kernels::ops::ScanShape;

/// Largest number of tokens that a convolution sees.
const MAX_KERNEL: usize = 64;

/// The family `granitehybrid`.
pub(super) struct GraniteHybrid;

impl Family for GraniteHybrid {
    fn name(&self) -> &'static str {
        "granitehybrid"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["granitemoehybrid"]
    }

    fn tied_by_default(&self) -> bool {
        true
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let bad = common::bad(keys);
        let mut config = common::gguf_with_experts(self.name(), keys)?;
        granite::gguf_factors(keys, &mut config)?;
        if keys.size_or_zero("expert_count", experts::MAX_EXPERTS)?.is_some() {
            let weighting = ExpertWeighting::SoftmaxOfChosen;
            config.experts = Some(experts::gguf_experts(keys, weighting, config.intermediate_size)?);
        }
        let heads = keys.need_size("ssm.time_step_rank", common::limit::HEADS)?;
        let inner = keys.need_size("ssm.inner_size", common::limit::HEADS * common::limit::HEAD_DIM)?;
        if !inner.is_multiple_of(heads) {
            return Err(bad(format!("inputs of {inner} elements do not divide into {heads} heads")));
        }
        let scan = ScanShape {
            heads,
            head_dim: inner / heads,
            groups: keys.need_size("ssm.group_count", common::limit::HEADS)?,
            state: keys.need_size("ssm.state_size", common::limit::HEAD_DIM)?,
        };
        let kernel = keys.need_size("ssm.conv_kernel", MAX_KERNEL)?;
        // Layers of Mamba-2 have 0 KV heads.
        let layers = keys.kv_heads(config.n_layers)?.iter().map(|&heads| heads == 0).collect();
        complete(&mut config, layers, scan, kernel).map_err(bad)?;
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let mut config = common::hf(self.name(), hf, &common::HfDefaults::default())?;
        let width = config.intermediate_size;
        config.intermediate_size =
            hf.size("shared_intermediate_size", common::limit::INTERMEDIATE)?.unwrap_or(1024);
        common::hf_ropes(hf, &mut config)?;
        granite::hf_factors(hf, &mut config)?;
        let rope = hf.text("position_embedding_type")? == Some("rope");
        config.rope_layers.fill(rope);
        if hf.count("num_local_experts")?.unwrap_or(8) > 0 {
            let defaults = experts::HfDefaults { count: 8, per_token: 2 };
            let experts = experts::hf(hf, &defaults, ExpertWeighting::SoftmaxOfChosen, width)?;
            config.experts = Some(Experts { shared: Some(config.intermediate_size), ..experts });
        }
        let layers = hf_layers(hf, config.n_layers)?;
        let heads = hf.size("mamba_n_heads", common::limit::HEADS)?.unwrap_or(128);
        let expand = hf.size("mamba_expand", common::limit::HEADS)?.unwrap_or(2);
        let scan = ScanShape {
            heads,
            head_dim: expand * config.hidden_size / heads,
            groups: hf.size("mamba_n_groups", common::limit::HEADS)?.unwrap_or(1),
            state: hf.size("mamba_d_state", common::limit::HEAD_DIM)?.unwrap_or(256),
        };
        let kernel = hf.size("mamba_d_conv", MAX_KERNEL)?.unwrap_or(4);
        if layers.contains(&true) && scan.width() != expand * config.hidden_size {
            return Err(hf.bad(format!("\"mamba_n_heads\" of {heads} does not divide the layer evenly")));
        }
        complete(&mut config, layers, scan, kernel).map_err(|what| hf.bad(what))?;
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let mut layer = tensors::plain_layer(config);
        second_block(config, &mut layer);
        layer
    }

    fn recurrent_layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let mut layer = self.layer_tensors(config);
        let Some(RecurrenceKind::Mamba2 { scan, kernel }) = config.recurrence.as_ref().map(|r| r.kind) else {
            return layer;
        };
        let (h, width, inputs, heads) = (config.hidden_size, scan.width(), scan.inputs(), scan.heads);
        tensors::remove_attention(&mut layer);
        layer.extend([
            tensors::required("ssm_in.weight", &[width + inputs + heads, h]),
            tensors::required("ssm_conv1d.weight", &[inputs, kernel]),
            tensors::optional("ssm_conv1d.bias", &[inputs]),
            tensors::required("ssm_dt_bias.weight", &[heads]),
            tensors::required_unless("ssm_a.weight", &[heads], "ssm_a_log.weight"),
            tensors::required_unless("ssm_a_log.weight", &[heads], "ssm_a.weight"),
            tensors::required("ssm_d.weight", &[heads]),
            tensors::required("ssm_norm.weight", &[width]),
            tensors::required("ssm_out.weight", &[h, width]),
        ]);
        layer
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        Some(match hf {
            "shared_mlp.input_linear" => "ffn_up",
            "shared_mlp.output_linear" => "ffn_down",
            "mamba.in_proj" => "ssm_in",
            "mamba.conv1d" => "ssm_conv1d",
            "mamba.dt_bias" => "ssm_dt_bias",
            "mamba.A_log" => "ssm_a_log",
            "mamba.D" => "ssm_d",
            "mamba.norm" => "ssm_norm",
            "mamba.out_proj" => "ssm_out",
            _ => return granitemoe::layer_tensor_name(hf),
        })
    }

    /// GGUF files have the tensors of a block under the names of a shared expert, if there are experts.
    fn gguf_alias(&self, name: &str) -> Option<&'static str> {
        Some(match name {
            "ffn_gate.weight" => "ffn_gate_shexp.weight",
            "ffn_up.weight" => "ffn_up_shexp.weight",
            "ffn_down.weight" => "ffn_down_shexp.weight",
            "ssm_a" => "ssm_a.weight",
            "ssm_d" => "ssm_d.weight",
            "ssm_dt.bias" => "ssm_dt_bias.weight",
            _ => return None,
        })
    }
}

/// Which layers are of Mamba-2. Without a list, all are.
fn hf_layers(hf: &HfConfig<'_>, n_layers: usize) -> Result<Vec<bool>> {
    let types = hf.get("layer_types").or(hf.get("layers_block_type")).and_then(serde_json::Value::as_array);
    let Some(types) = types else { return Ok(vec![true; n_layers]) };
    let is_mamba = |kind: &serde_json::Value| match kind.as_str() {
        Some("mamba" | "linear_attention") => Ok(true),
        Some("attention" | "full_attention") => Ok(false),
        _ => Err(hf.unsupported(
            "\"layer_types\" has layers that are neither mamba nor attention",
            "models with these two kinds are supported",
        )),
    };
    let layers: Vec<bool> = types.iter().map(is_mamba).collect::<Result<_>>()?;
    if layers.len() != n_layers {
        return Err(hf.bad(format!("\"layer_types\" has {} items for {n_layers} layers", layers.len())));
    }
    Ok(layers)
}

/// Replaces the tensors of the feed-forward block: gate and up in one matrix or in two, and experts beside them.
fn second_block(config: &ModelConfig, layer: &mut Vec<TensorSpec>) {
    let (h, width) = (config.hidden_size, config.experts.and_then(|experts| experts.shared));
    let of_block = ["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"];
    layer.retain(|spec| !of_block.contains(&spec.name.as_str()));
    if config.experts.is_some() {
        layer.extend(tensors::experts(config));
    }
    // A mixture of experts may have no block.
    let Some(f) = width.or_else(|| config.experts.is_none().then_some(config.intermediate_size)) else {
        return;
    };
    layer.extend([
        tensors::required_unless("ffn_up.weight", &[2 * f, h], "ffn_up_shexp.weight"),
        tensors::required_unless("ffn_down.weight", &[h, f], "ffn_down_shexp.weight"),
        tensors::required_unless("ffn_gate_shexp.weight", &[f, h], "ffn_up.weight"),
        tensors::required_unless("ffn_up_shexp.weight", &[f, h], "ffn_up.weight"),
        tensors::required_unless("ffn_down_shexp.weight", &[h, f], "ffn_down.weight"),
    ]);
}

/// Sets the layers of Mamba-2.
fn complete(
    config: &mut ModelConfig,
    layers: Vec<bool>,
    scan: ScanShape,
    kernel: usize,
) -> Result<(), String> {
    let ScanShape { heads, head_dim, groups, state } = scan;
    if layers.contains(&true) {
        if !heads.is_multiple_of(groups) {
            return Err(format!("{heads} heads of Mamba-2 cannot share {groups} groups evenly"));
        }
        if !head_dim.is_multiple_of(16) || head_dim == 0 || !state.is_multiple_of(2) {
            return Err(format!(
                "Mamba-2 with heads of {head_dim} elements and states of {state}; multiples of 16 and of 2 are needed"
            ));
        }
    }
    common::set_recurrence(config, layers, RecurrenceKind::Mamba2 { scan, kernel })
}
