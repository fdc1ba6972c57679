//! LFM2 and LFM2.5 (dense): gated short convolutions beside attention with norms of query and key heads (LFM2 Technical Report,
//! arXiv 2511.23404, section 2).

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, tensors};
use crate::{
    config::{ModelConfig, RecurrenceKind},
    error::Result,
};

/// Largest number of tokens that a convolution sees.
const MAX_KERNEL: usize = 64;

/// The family `lfm2`.
pub(super) struct Lfm2;

impl Family for Lfm2 {
    fn name(&self) -> &'static str {
        "lfm2"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["lfm2"]
    }

    fn tied_by_default(&self) -> bool {
        true
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let mut config = common::gguf(self.name(), keys)?;
        gguf_layers(keys, &mut config)?;
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        let hf = &hf.with_defaults(&[
            ("vocab_size", 65_536),
            ("hidden_size", 2560),
            ("intermediate_size", 12_288),
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("max_position_embeddings", 128_000),
        ]);
        let mut config = hf_layers(self.name(), hf)?;
        config.intermediate_size = width(hf, config.intermediate_size)?;
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        attention_layer(config, tensors::plain_layer(config))
    }

    fn recurrent_layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        recurrent_layer(config, tensors::plain_layer(config))
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        layer_tensor_name(hf)
    }

    fn gguf_alias(&self, name: &str) -> Option<&'static str> {
        gguf_alias(name)
    }
}

/// Adds the kinds of layers of a GGUF file.
pub(super) fn gguf_layers(keys: &GgufKeys<'_>, config: &mut ModelConfig) -> Result<()> {
    let kernel = keys.need_size("shortconv.l_cache", MAX_KERNEL)?;
    // Convolutions have 0 KV heads.
    let layers = keys.kv_heads(config.n_layers)?.iter().map(|&heads| heads == 0).collect();
    let kind = RecurrenceKind::ShortConv { width: config.hidden_size, kernel };
    common::set_recurrence(config, layers, kind).map_err(common::bad(keys))
}

/// The configuration of a `config.json`, apart from the second block of each layer.
pub(super) fn hf_layers(family: &'static str, hf: &HfConfig<'_>) -> Result<ModelConfig> {
    let defaults = common::HfDefaults { kv_heads: Some(8), eps: 1e-5, ..Default::default() };
    let mut config = common::hf(family, hf, &defaults)?;
    if let Some(eps) = hf.positive("norm_eps")? {
        config.rms_norm_eps = eps as f32;
        common::check(&config).map_err(|what| hf.bad(what))?;
    }
    let object = hf.rope_object("full_attention")?;
    let base = hf.rope_base(object, "full_attention", "rope_theta")?.unwrap_or(1e6);
    (config.rope, config.rope_long) = hf.ropes_with(object, base, config.head_dim, config.context_length)?;
    let layers = match hf.layer_kinds(config.n_layers, "conv")? {
        Some(layers) => layers,
        None => {
            let indices = hf.get("full_attn_idxs").and_then(serde_json::Value::as_array);
            let is_attention =
                |layer: usize| indices.is_none_or(|all| all.iter().any(|i| i.as_u64() == Some(layer as u64)));
            (0..config.n_layers).map(|layer| !is_attention(layer)).collect()
        }
    };
    let kernel = hf.size("conv_L_cache", MAX_KERNEL)?.unwrap_or(3);
    let kind = RecurrenceKind::ShortConv { width: config.hidden_size, kernel };
    common::set_recurrence(&mut config, layers, kind).map_err(|what| hf.bad(what))?;
    Ok(config)
}

/// Shapes of the tensors of an attention layer. `layer` has those of its second block.
pub(super) fn attention_layer(config: &ModelConfig, mut layer: Vec<TensorSpec>) -> Vec<TensorSpec> {
    layer.extend(tensors::head_norms(config));
    layer
}

/// Shapes of the tensors of a layer with a convolution. `layer` has those of its second block.
pub(super) fn recurrent_layer(config: &ModelConfig, mut layer: Vec<TensorSpec>) -> Vec<TensorSpec> {
    tensors::remove_attention(&mut layer);
    let h = config.hidden_size;
    if let Some(RecurrenceKind::ShortConv { kernel, .. }) = config.recurrence.as_ref().map(|r| r.kind) {
        layer.extend([
            tensors::required("shortconv.in_proj.weight", &[3 * h, h]),
            tensors::required("shortconv.conv.weight", &[h, kernel]),
            tensors::required("shortconv.out_proj.weight", &[h, h]),
        ]);
    }
    layer
}

/// As [`Family::layer_tensor_name`].
pub(super) fn layer_tensor_name(hf: &str) -> Option<&'static str> {
    Some(match hf {
        "operator_norm" => "attn_norm",
        "self_attn.q_layernorm" => "attn_q_norm",
        "self_attn.k_layernorm" => "attn_k_norm",
        "self_attn.out_proj" => "attn_output",
        "ffn_norm" => "ffn_norm",
        "feed_forward.w1" => "ffn_gate",
        "feed_forward.w3" => "ffn_up",
        "feed_forward.w2" => "ffn_down",
        "conv.in_proj" => "shortconv.in_proj",
        "conv.conv" => "shortconv.conv",
        "conv.out_proj" => "shortconv.out_proj",
        _ => return tensors::layer_tensor_name(hf),
    })
}

/// As [`Family::gguf_alias`].
pub(super) fn gguf_alias(name: &str) -> Option<&'static str> {
    (name == "token_embd_norm.weight").then_some("output_norm.weight")
}

/// The width of the feed-forward block: two thirds of the one in the file, scaled and rounded up, unless switched off.
fn width(hf: &HfConfig<'_>, intermediate_size: usize) -> Result<usize> {
    let given = hf.size("block_ff_dim", common::limit::INTERMEDIATE)?.unwrap_or(intermediate_size);
    if !hf.bool("block_auto_adjust_ff_dim")?.unwrap_or(true) {
        return Ok(given);
    }
    let factor = hf.positive("block_ffn_dim_multiplier")?.unwrap_or(1.0);
    let multiple = hf.size("block_multiple_of", common::limit::INTERMEDIATE)?.unwrap_or(256);
    let width = ((factor * (2 * given / 3) as f64) as usize).next_multiple_of(multiple);
    if width == 0 || width > common::limit::INTERMEDIATE {
        return Err(hf.bad(format!("a feed-forward block of width {width}")));
    }
    Ok(width)
}
