//! The configuration in scrimp's own files: every field of [`ModelConfig`] as JSON.

use super::{by_architecture, common, experts};
use crate::config::{
    Activation, AttentionTemperature, ExpertWeighting, Experts, LongRope, ModelConfig, Rope, RopePairs, Sizes,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRope {
    inv_freq: Vec<f32>,
    magnitude: f32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredLongRope {
    original_context: usize,
    inv_freq: Vec<f32>,
    magnitude: f32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTemperature {
    beta: f32,
    original_context: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredExperts {
    count: usize,
    per_token: usize,
    weighting: String,
}

impl StoredExperts {
    fn checked(self, width: usize) -> Result<Experts, String> {
        let Self { count, per_token, weighting } = self;
        let weighting = by_name(&WEIGHTINGS, "weighting", &weighting)?;
        experts::check(Experts::plain(count, per_token, width, weighting))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    family: String,
    name: String,
    n_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    context_length: usize,
    rms_norm_eps: f32,
    norm_plus_one: bool,
    rope: StoredRope,
    rope_local: Option<StoredRope>,
    rope_long: Option<StoredLongRope>,
    rope_pairs: String,
    /// Files of version 0.1.0 have none of the optional keys below: all layers have RoPE, and the factors are 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_layers: Option<Vec<bool>>,
    sliding_window: Vec<Option<usize>>,
    attn_scale: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attn_temperature: Option<StoredTemperature>,
    attn_logit_softcap: Option<f32>,
    final_logit_softcap: Option<f32>,
    embedding_scale: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    residual_scale: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logit_scale: Option<f32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    bidirectional: bool,
    activation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    experts: Option<StoredExperts>,
}

const PAIRS: [(RopePairs, &str); 2] = [(RopePairs::Adjacent, "adjacent"), (RopePairs::Halves, "halves")];
const ACTIVATIONS: [(Activation, &str); 3] = [
    (Activation::Silu, "silu"),
    (Activation::GeluTanh, "gelu_tanh"),
    (Activation::ClampedSilu, "clamped_silu"),
];

const WEIGHTINGS: [(ExpertWeighting, &str); 2] =
    [(ExpertWeighting::Softmax, "softmax"), (ExpertWeighting::SoftmaxOfChosen, "softmax_of_chosen")];

fn name_of<T: PartialEq>(all: &[(T, &'static str)], value: &T) -> String {
    all.iter().find(|(v, _)| v == value).map(|(_, name)| (*name).to_owned()).unwrap_or_default()
}

fn by_name<T: Copy>(all: &[(T, &'static str)], key: &str, name: &str) -> Result<T, String> {
    let found = all.iter().find(|(_, n)| *n == name).map(|(value, _)| *value);
    found.ok_or_else(|| format!("{key} is {name:?}"))
}

/// The configuration as JSON.
pub fn to_json(config: &ModelConfig) -> String {
    let rope = |r: &Rope| StoredRope { inv_freq: r.inv_freq.clone(), magnitude: r.magnitude };
    let stored = Stored {
        family: config.family.to_owned(),
        name: config.name.clone(),
        n_layers: config.n_layers,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        context_length: config.context_length,
        rms_norm_eps: config.rms_norm_eps,
        norm_plus_one: config.norm_plus_one,
        rope: rope(&config.rope),
        rope_local: config.rope_local.as_ref().map(rope),
        rope_long: config.rope_long.as_ref().map(|long| StoredLongRope {
            original_context: long.original_context,
            inv_freq: long.rope.inv_freq.clone(),
            magnitude: long.rope.magnitude,
        }),
        rope_pairs: name_of(&PAIRS, &config.rope_pairs),
        rope_layers: config.rope_layers.contains(&false).then(|| config.rope_layers.clone()),
        sliding_window: config.sliding_window.clone(),
        attn_scale: config.attn_scale,
        attn_temperature: config
            .attn_temperature
            .map(|t| StoredTemperature { beta: t.beta, original_context: t.original_context }),
        attn_logit_softcap: config.attn_logit_softcap,
        final_logit_softcap: config.final_logit_softcap,
        embedding_scale: config.embedding_scale,
        residual_scale: Some(config.residual_scale).filter(|&scale| scale != 1.0),
        logit_scale: Some(config.logit_scale).filter(|&scale| scale != 1.0),
        bidirectional: config.bidirectional,
        activation: name_of(&ACTIVATIONS, &config.activation),
        experts: config.experts.map(|experts| StoredExperts {
            count: experts.count,
            per_token: experts.per_token,
            weighting: name_of(&WEIGHTINGS, &experts.weighting),
        }),
    };
    serde_json::to_string(&stored).unwrap_or_default()
}

/// A configuration from JSON, checked.
///
/// # Errors
/// A message that names the invalid field.
pub(crate) fn from_json(json: &str) -> Result<ModelConfig, String> {
    let stored: Stored = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let family = by_architecture(&stored.family).map_err(|e| e.to_string())?.name();
    let rope = |what: &str, inv_freq: Vec<f32>, magnitude: f32| {
        let usable = inv_freq.iter().chain([&magnitude]).all(|x| x.is_finite());
        if !usable || inv_freq.is_empty() || inv_freq.len() > stored.head_dim / 2 {
            return Err(format!("{what} of heads of {} is out of range", stored.head_dim));
        }
        Ok(Rope { inv_freq, magnitude })
    };
    let sizes = [
        ("n_layers", stored.n_layers, common::limit::LAYERS),
        ("hidden_size", stored.hidden_size, common::limit::HIDDEN),
        ("intermediate_size", stored.intermediate_size, common::limit::INTERMEDIATE),
        ("n_heads", stored.n_heads, common::limit::HEADS),
        ("n_kv_heads", stored.n_kv_heads, common::limit::HEADS),
        ("head_dim", stored.head_dim, common::limit::HEAD_DIM),
        ("vocab_size", stored.vocab_size, common::limit::VOCAB),
        ("context_length", stored.context_length, common::limit::CONTEXT),
    ];
    for (key, value, limit) in sizes {
        if value == 0 || value > limit {
            return Err(format!("{key} is {value}; 1 to {limit} are allowed"));
        }
    }
    if stored.sliding_window.len() != stored.n_layers || stored.sliding_window.contains(&Some(0)) {
        return Err("sliding_window does not fit the layers".to_owned());
    }
    if stored.rope_layers.as_ref().is_some_and(|layers| layers.len() != stored.n_layers) {
        return Err("rope_layers does not fit the layers".to_owned());
    }
    let positive = |key: &str, value: f32| common::factor(key, f64::from(value));
    let softcap = |key: &str, cap: Option<f32>| cap.map(|cap| positive(key, cap)).transpose();
    let sizes = Sizes {
        n_layers: stored.n_layers,
        hidden_size: stored.hidden_size,
        intermediate_size: stored.intermediate_size,
        n_heads: stored.n_heads,
        n_kv_heads: stored.n_kv_heads,
        head_dim: stored.head_dim,
        vocab_size: stored.vocab_size,
        context_length: stored.context_length,
    };
    let config = ModelConfig {
        rms_norm_eps: stored.rms_norm_eps,
        norm_plus_one: stored.norm_plus_one,
        rope: rope("rope", stored.rope.inv_freq, stored.rope.magnitude)?,
        rope_local: stored.rope_local.map(|r| rope("rope_local", r.inv_freq, r.magnitude)).transpose()?,
        rope_long: match stored.rope_long {
            Some(r) => Some(LongRope {
                original_context: r.original_context,
                rope: rope("rope_long", r.inv_freq, r.magnitude)?,
            }),
            None => None,
        },
        rope_pairs: by_name(&PAIRS, "rope_pairs", &stored.rope_pairs)?,
        rope_layers: stored.rope_layers.unwrap_or_else(|| vec![true; stored.n_layers]),
        sliding_window: stored.sliding_window,
        attn_scale: positive("attn_scale", stored.attn_scale)?,
        attn_temperature: match stored.attn_temperature {
            Some(t) => Some(AttentionTemperature {
                beta: positive("attn_temperature", t.beta)?,
                original_context: t.original_context,
            }),
            None => None,
        },
        attn_logit_softcap: softcap("attn_logit_softcap", stored.attn_logit_softcap)?,
        final_logit_softcap: softcap("final_logit_softcap", stored.final_logit_softcap)?,
        embedding_scale: positive("embedding_scale", stored.embedding_scale)?,
        residual_scale: positive("residual_scale", stored.residual_scale.unwrap_or(1.0))?,
        bidirectional: stored.bidirectional,
        logit_scale: positive("logit_scale", stored.logit_scale.unwrap_or(1.0))?,
        activation: by_name(&ACTIVATIONS, "activation", &stored.activation)?,
        experts: stored.experts.map(|experts| experts.checked(stored.intermediate_size)).transpose()?,
        ..ModelConfig::plain(family, stored.name, sizes)
    };
    common::check(&config)?;
    Ok(config)
}
