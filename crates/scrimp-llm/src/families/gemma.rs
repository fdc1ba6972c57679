//! What the families of Gemma share.

use super::{GgufKeys, HfConfig, TensorSpec, common, rope, tensors};
use crate::{
    config::{Activation, LayerInputs, ModelConfig, SharedKv},
    error::Result,
};

/// The shared part of a GGUF file's configuration. `layers_27b` is the number of layers of the 27B model: GGUF does not
/// have its attention scale.
pub(super) fn gguf(family: &'static str, keys: &GgufKeys<'_>, layers_27b: usize) -> Result<ModelConfig> {
    let mut config = common::gguf(family, keys)?;
    config.activation = Activation::GeluTanh;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    if config.n_layers == layers_27b {
        config.attn_scale = 1.0 / ((config.hidden_size / config.n_heads) as f32).sqrt();
    }
    Ok(config)
}

/// The shared part of a `config.json`.
pub(super) fn hf(family: &'static str, hf: &HfConfig<'_>) -> Result<ModelConfig> {
    let key = if hf.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    let defaults = common::HfDefaults {
        head_dim: Some(256),
        kv_heads: Some(4),
        activation: Activation::GeluTanh,
        activation_key: key,
        ..Default::default()
    };
    let mut config = common::hf(family, hf, &defaults)?;
    config.norm_plus_one = true;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    let scalar = hf.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    config.attn_scale =
        common::factor("the attention scale", 1.0 / scalar.sqrt()).map_err(|what| hf.bad(what))?;
    Ok(config)
}

/// Whether a layer has a window, where every `pattern`th layer is global.
pub(super) fn is_sliding(layer: usize, pattern: usize) -> bool {
    !(layer + 1).is_multiple_of(pattern)
}

/// The rotary embeddings of a GGUF file; `global` and `local` are the bases in files without these numbers.
pub(super) fn gguf_ropes(
    keys: &GgufKeys<'_>,
    config: &mut ModelConfig,
    global: f64,
    local: f64,
) -> Result<()> {
    let rotary_dim = config.rope.rotary_dim();
    if keys.positive("rope.freq_base")?.is_none() {
        config.rope = keys.rope(rotary_dim, global, config.context_length, None)?;
    }
    let local = keys.positive("rope.freq_base_swa")?.unwrap_or(local);
    let local = rope::rope(rotary_dim, local, &rope::Scaling::None, None, 1.0);
    config.rope_local = Some(local.map_err(common::bad(keys))?);
    Ok(())
}

/// The layers with a window in a GGUF file that has a flag for each layer. In files without flags, every `pattern`th
/// layer is global.
pub(super) fn gguf_windows(keys: &GgufKeys<'_>, config: &mut ModelConfig, pattern: usize) -> Result<()> {
    let n_layers = config.n_layers;
    let sliding = match keys.flags("attention.sliding_window_pattern", n_layers)? {
        Some(sliding) => sliding,
        None => (0..n_layers).map(|layer| is_sliding(layer, pattern)).collect(),
    };
    let window = keys.need_size("attention.sliding_window", common::limit::CONTEXT)?;
    config.sliding_window = sliding.iter().map(|&sliding| sliding.then_some(window)).collect();
    Ok(())
}

/// GGUF's name of a layer's tensor; the norms have other names than in most families.
pub(super) fn layer_tensor_name(hf: &str) -> Option<&'static str> {
    match hf {
        "post_attention_layernorm" => Some("post_attention_norm"),
        "pre_feedforward_layernorm" => Some("ffn_norm"),
        "post_feedforward_layernorm" => Some("post_ffw_norm"),
        "per_layer_input_gate" => Some("inp_gate"),
        "per_layer_projection" => Some("proj"),
        "post_per_layer_input_norm" => Some("post_norm"),
        _ => tensors::layer_tensor_name(hf),
    }
}

/// The inputs of each layer beside the residual stream, in a GGUF file.
pub(super) fn gguf_layer_inputs(keys: &GgufKeys<'_>, vocab_size: usize) -> Result<Option<LayerInputs>> {
    let width = keys.size_or_zero("embedding_length_per_layer_input", common::limit::HIDDEN)?;
    Ok(width.map(|width| LayerInputs { width, vocab_size }))
}

/// The inputs of each layer beside the residual stream, in a `config.json`.
pub(super) fn hf_layer_inputs(hf: &HfConfig<'_>) -> Result<Option<LayerInputs>> {
    let key = "hidden_size_per_layer_input";
    if hf.is_null(key) || hf.count(key)? == Some(0) {
        return Ok(None);
    }
    let width = hf.size(key, common::limit::HIDDEN)?.unwrap_or(256);
    let vocab_size = hf.size("vocab_size_per_layer_input", common::limit::VOCAB)?.unwrap_or(262_144);
    Ok(Some(LayerInputs { width, vocab_size }))
}

/// Shapes of the tensors of the input of a layer.
pub(super) fn layer_input(config: &ModelConfig) -> Vec<TensorSpec> {
    let Some(LayerInputs { width, .. }) = config.per_layer_input else { return Vec::new() };
    let h = config.hidden_size;
    vec![
        tensors::required("inp_gate.weight", &[width, h]),
        tensors::required("proj.weight", &[h, width]),
        tensors::required("post_norm.weight", &[h]),
    ]
}

/// Shapes of the tensors of the inputs of all layers.
pub(super) fn layer_inputs(config: &ModelConfig) -> Vec<TensorSpec> {
    let Some(LayerInputs { width, vocab_size }) = config.per_layer_input else { return Vec::new() };
    let all = config.n_layers * width;
    vec![
        tensors::required("per_layer_token_embd.weight", &[vocab_size, all]),
        tensors::required("per_layer_model_proj.weight", &[all, config.hidden_size]),
        tensors::required("per_layer_proj_norm.weight", &[width]),
    ]
}

/// Sets the layers that read earlier keys and values, the last `shared`, and the widths of their blocks.
pub(super) fn set_shared_kv(config: &mut ModelConfig, shared: usize, widths: &[usize]) -> Result<(), String> {
    let first = config.n_layers.saturating_sub(shared);
    let (own, last) = widths.split_at(first);
    let alike = |widths: &[usize]| widths.iter().all(|width| *width == widths[0]);
    if !alike(own) || !alike(last) {
        return Err("layers of one kind have feed-forward blocks of different widths".to_owned());
    }
    let kinds = |layers: &[Option<usize>]| {
        [true, false].map(|windowed| layers.iter().any(|window| window.is_some() == windowed))
    };
    let [own_kinds, last_kinds] =
        [&config.sliding_window[..first], &config.sliding_window[first..]].map(kinds);
    if own_kinds.iter().zip(last_kinds).any(|(own, last)| last && !own) {
        return Err(format!("the last {shared} layers read keys and values of layers that the model lacks"));
    }
    config.intermediate_size = own.first().copied().unwrap_or(config.intermediate_size);
    config.shared_kv = last.first().map(|&intermediate_size| SharedKv { first, intermediate_size });
    Ok(())
}

/// Global and local rotary embedding, with these default bases. The older `rope_scaling` and `rope_theta` apply to global
/// layers only.
pub(super) fn hf_ropes(hf: &HfConfig<'_>, config: &mut ModelConfig, [global, local]: [f64; 2]) -> Result<()> {
    let (head_dim, context) = (config.head_dim, config.context_length);
    let object = hf.rope_object("full_attention")?;
    let base = hf.rope_base(object, "full_attention", "rope_theta")?.unwrap_or(global);
    (config.rope, config.rope_long) = hf.ropes_with(object, base, head_dim, context)?;

    let parameters = hf.object("rope_parameters")?;
    let object = parameters.map(|p| p.object("sliding_attention")).transpose()?.flatten();
    let base = object.map(|o| o.positive("rope_theta")).transpose()?.flatten();
    let base = base.or(hf.positive("rope_local_base_freq")?).unwrap_or(local);
    config.rope_local = Some(hf.ropes_with(object, base, head_dim, context)?.0);
    Ok(())
}
