//! Gemma 3n, its text part (transformers 5.24, `Gemma3nTextModel`): four layers with a window to one global layer, several
//! residual streams (AltUp), a learned residual (LAuReL), inputs of each layer beside the residual stream, sparse gates in
//! the first layers, and last layers that read earlier keys and values.
//!
//! Unlike in Gemma 3, the factor of a norm is `w` in both kinds of files.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, gemma, tensors};
use crate::{
    config::{Activation, AltUp, GATE_CUTOFF, ModelConfig},
    error::Result,
};

/// Every fifth layer is global, unless the file says otherwise.
const PATTERN: usize = 5;
const GLOBAL_BASE: f64 = 1e6;
const LOCAL_BASE: f64 = 1e4;
const WINDOW: usize = 512;
/// Layers with keys and values of their own, and with sparse gates, in GGUF files without these numbers.
const OWN_KV: usize = 20;
const SPARSE: usize = 10;
/// The share of gates that a sparse layer sets to 0.
const SPARSITY: f64 = 0.95;
/// Largest number of residual streams.
const MAX_STREAMS: usize = 16;

/// The family `gemma3n`.
pub(super) struct Gemma3n;

impl Family for Gemma3n {
    fn name(&self) -> &'static str {
        "gemma3n"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["gemma3n", "gemma3n_text"]
    }

    fn tied_by_default(&self) -> bool {
        true
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let bad = common::bad(keys);
        let mut config = common::gguf(self.name(), keys)?;
        complete(&mut config);
        let n_layers = config.n_layers;
        gemma::gguf_ropes(keys, &mut config, GLOBAL_BASE, LOCAL_BASE)?;
        gemma::gguf_windows(keys, &mut config, PATTERN)?;
        let shared = match keys.size_or_zero("attention.shared_kv_layers", n_layers)? {
            None if !keys.has("attention.shared_kv_layers") => n_layers.saturating_sub(OWN_KV),
            shared => shared.unwrap_or(0),
        };
        let widths = vec![config.intermediate_size; n_layers];
        gemma::set_shared_kv(&mut config, shared, &widths).map_err(&bad)?;
        config.per_layer_input = gemma::gguf_layer_inputs(keys, config.vocab_size)?;
        let streams = keys.need_size("altup.num_inputs", MAX_STREAMS)?;
        let active = keys.size_or_zero("altup.active_idx", MAX_STREAMS)?.unwrap_or(0);
        set_streams(&mut config, streams, active).map_err(&bad)?;
        let rank = keys.tensor("blk.0.laurel_l.weight").map(|(_, tensor)| tensor.shape[0]);
        config.laurel_rank =
            Some(rank.ok_or_else(|| bad("tensor blk.0.laurel_l.weight is missing".to_owned()))?);
        config.sparse_gates = match keys.numbers("activation_sparsity_scale")? {
            Some(scales) => {
                let sparse = |scale: &f32| match *scale {
                    scale if (scale - GATE_CUTOFF).abs() < 1e-3 => Some(true),
                    scale if scale < -1e3 => Some(false),
                    _ => None,
                };
                first_layers(&scales.iter().map(sparse).collect::<Vec<_>>()).map_err(&bad)?
            }
            None => SPARSE.min(n_layers),
        };
        config.final_logit_softcap = match keys.number("final_logit_softcapping")? {
            Some(cap) => common::softcap(Some(cap)).map_err(&bad)?,
            None => Some(30.0),
        };
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        // A multimodal model has the language model's configuration in an object of its own.
        let text = hf.object("text_config")?.unwrap_or(*hf);
        let hf = &text.with_defaults(&[
            ("vocab_size", 262_400),
            ("hidden_size", 2048),
            ("num_hidden_layers", 35),
            ("num_attention_heads", 8),
            ("max_position_embeddings", 32_768),
        ]);
        let widths = hf.first_size("intermediate_size", common::limit::INTERMEDIATE)?.unwrap_or(16_384);
        let defaults = common::HfDefaults {
            head_dim: Some(256),
            kv_heads: Some(2),
            activation: Activation::GeluTanh,
            activation_key: "hidden_activation",
            ..Default::default()
        };
        let mut config = common::hf_with_width(self.name(), hf, &defaults, widths)?;
        complete(&mut config);
        let n_layers = config.n_layers;
        let window = hf.window(Some(WINDOW))?;
        config.sliding_window = hf.windows(n_layers, window, |layer| gemma::is_sliding(layer, PATTERN))?;
        let shared = hf.count("num_kv_shared_layers")?.unwrap_or(15);
        let widths = vec![widths; n_layers];
        gemma::set_shared_kv(&mut config, shared, &widths).map_err(|what| hf.bad(what))?;
        gemma::hf_ropes(hf, &mut config, [GLOBAL_BASE, LOCAL_BASE])?;
        config.per_layer_input = gemma::hf_layer_inputs(hf)?;
        let streams = hf.size("altup_num_inputs", MAX_STREAMS)?.unwrap_or(4);
        let active = hf.count("altup_active_idx")?.unwrap_or(0);
        set_streams(&mut config, streams, active).map_err(|what| hf.bad(what))?;
        if !hf.bool("altup_correct_scale")?.unwrap_or(true) {
            return Err(hf.unsupported("streams without a scale are not supported", "use a published model"));
        }
        config.laurel_rank = Some(hf.size("laurel_rank", common::limit::HIDDEN)?.unwrap_or(64));
        config.sparse_gates = hf_sparse_gates(hf, n_layers)?;
        let cap = if hf.is_null("final_logit_softcapping") {
            None
        } else {
            hf.number("final_logit_softcapping")?.or(Some(30.0))
        };
        config.final_logit_softcap = common::softcap(cap).map_err(|what| hf.bad(what))?;
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let (h, streams) = (config.hidden_size, config.altup.map_or(0, |altup| altup.streams));
        let rank = config.laurel_rank.unwrap_or(0);
        let mut specs = tensors::plain_layer(config);
        specs.retain(|spec| !spec.name.ends_with(".bias"));
        specs.extend(tensors::head_norms(config));
        specs.extend(gemma::layer_input(config));
        specs.extend([
            tensors::required("post_attention_norm.weight", &[h]),
            tensors::required("post_ffw_norm.weight", &[h]),
            tensors::required("altup_router.weight", &[streams, h]),
            tensors::required("altup_router_norm.weight", &[h]),
            tensors::required("altup_predict_coef.weight", &[streams * streams, streams]),
            tensors::required("altup_correct_coef.weight", &[streams, streams]),
            tensors::required("altup_correct_scale.weight", &[h]),
            tensors::required("laurel_l.weight", &[rank, h]),
            tensors::required("laurel_r.weight", &[h, rank]),
            tensors::required("laurel_post_norm.weight", &[h]),
        ]);
        specs
    }

    fn tensors_of_layer(&self, config: &ModelConfig, layer: usize) -> Vec<TensorSpec> {
        let mut specs = self.layer_tensors(config);
        // Files hold the projections of layers that read earlier keys and values. They are not used.
        let of_kv = ["attn_k.weight", "attn_k_norm.weight", "attn_v.weight"];
        specs.retain(|spec| !config.shares_kv(layer) || !of_kv.contains(&spec.name.as_str()));
        specs
    }

    fn other_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let (h, streams) = (config.hidden_size, config.altup.map_or(0, |altup| altup.streams));
        let mut specs = gemma::layer_inputs(config);
        for stem in ["altup_proj", "altup_unembd_proj"] {
            specs.push(tensors::optional(&format!("{stem}.weight"), &[streams.saturating_sub(1), h, h]));
            let one = |i: usize| tensors::optional(&format!("{stem}.{i}.weight"), &[h, h]);
            specs.extend((1..streams).map(|i| one(i - 1)));
        }
        specs
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        Some(match hf {
            "altup.modality_router" => "altup_router",
            "altup.router_norm" => "altup_router_norm",
            "altup.prediction_coefs" => "altup_predict_coef",
            "altup.correction_coefs" => "altup_correct_coef",
            "altup.correct_output_scale" => "altup_correct_scale",
            "laurel.linear_left" => "laurel_l",
            "laurel.linear_right" => "laurel_r",
            "laurel.post_laurel_norm" => "laurel_post_norm",
            _ => return gemma::layer_tensor_name(hf),
        })
    }
}

/// What all models of the family have.
fn complete(config: &mut ModelConfig) {
    config.activation = Activation::GeluTanh;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    config.attn_scale = 1.0;
    config.value_norm = true;
}

fn set_streams(config: &mut ModelConfig, streams: usize, active: usize) -> Result<(), String> {
    if streams < 2 || active >= streams {
        return Err(format!("{streams} residual streams, of which layers change number {active}"));
    }
    config.altup = Some(AltUp { streams, active });
    Ok(())
}

/// The layers with sparse gates. Without a list, a model of more than ten layers has ten.
fn hf_sparse_gates(hf: &HfConfig<'_>, n_layers: usize) -> Result<usize> {
    let Some(pattern) = hf.get("activation_sparsity_pattern").and_then(serde_json::Value::as_array) else {
        return Ok(if n_layers > SPARSE { SPARSE } else { 0 });
    };
    let sparse = |value: &serde_json::Value| match value.as_f64() {
        Some(0.0) => Some(false),
        Some(share) if (share - SPARSITY).abs() < 1e-6 => Some(true),
        _ => None,
    };
    if pattern.len() != n_layers {
        let what =
            format!("\"activation_sparsity_pattern\" has {} items for {n_layers} layers", pattern.len());
        return Err(hf.bad(what));
    }
    first_layers(&pattern.iter().map(sparse).collect::<Vec<_>>()).map_err(|what| hf.bad(what))
}

/// The number of first layers that are sparse; `None`: another sparsity than the published one.
fn first_layers(sparse: &[Option<bool>]) -> Result<usize, String> {
    let first = sparse.iter().take_while(|sparse| **sparse == Some(true)).count();
    if sparse[first..].iter().all(|sparse| *sparse == Some(false)) {
        Ok(first)
    } else {
        Err(format!("gates that are sparse other than by {SPARSITY} in the first layers"))
    }
}
