//! The common part of all families' configurations, and the checks that every configuration passes.

use super::{GgufKeys, HfConfig, experts};
use crate::{
    config::{Activation, ModelConfig, Recurrence, RecurrenceKind, Sizes},
    error::{Error, Result},
};

/// Upper bounds for the sizes in a file. They are far above any real model. Products of two sizes fit in 64 bits, and
/// allocations from a size alone are small.
pub(super) mod limit {
    pub(in crate::families) const LAYERS: usize = 1 << 10;
    pub(in crate::families) const HIDDEN: usize = 1 << 17;
    pub(in crate::families) const INTERMEDIATE: usize = 1 << 20;
    pub(in crate::families) const HEADS: usize = 1 << 12;
    pub(in crate::families) const HEAD_DIM: usize = 1 << 12;
    pub(in crate::families) const VOCAB: usize = 1 << 24;
    pub(in crate::families) const CONTEXT: usize = 1 << 28;
}

/// Defaults of Hugging Face's configuration classes, for keys that files may leave out.
pub(super) struct HfDefaults {
    pub(super) head_dim: Option<usize>,
    pub(super) kv_heads: Option<usize>,
    pub(super) eps: f64,
    pub(super) activation: Activation,
    pub(super) activation_key: &'static str,
}

impl Default for HfDefaults {
    fn default() -> Self {
        Self {
            head_dim: None,
            kv_heads: None,
            eps: 1e-6,
            activation: Activation::Silu,
            activation_key: "hidden_act",
        }
    }
}

/// The configuration of a GGUF file for most families.
pub(super) fn gguf(family: &'static str, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    if keys.size_or_zero("expert_count", experts::MAX_EXPERTS)?.is_some() {
        let what = format!("experts in models of family {family} are not supported");
        return Err(keys.file().source().unsupported(what, "use a dense model"));
    }
    gguf_with_experts(family, keys)
}

/// As [`gguf`], for families that read the experts themselves.
pub(super) fn gguf_with_experts(family: &'static str, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    gguf_with(family, keys, &|name, max| keys.size(name, max))
}

/// As [`gguf_with_experts`], for families whose layers have different sizes: those of the first layer.
pub(super) fn gguf_with_layers(family: &'static str, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    gguf_with(family, keys, &|name, max| Ok(keys.sizes(name, 1, max)?.first().copied()))
}

/// As [`gguf`]. `size` reads the sizes of layers.
fn gguf_with(
    family: &'static str,
    keys: &GgufKeys<'_>,
    size: &dyn Fn(&str, usize) -> Result<Option<usize>>,
) -> Result<ModelConfig> {
    let file = keys.file();
    let n_layers = keys.need_size("block_count", limit::LAYERS)?;
    let hidden_size = keys.need_size("embedding_length", limit::HIDDEN)?;
    let n_heads = keys.need_size("attention.head_count", limit::HEADS)?;
    let head_dim = match keys.size("attention.key_length", limit::HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None => even_share(hidden_size, n_heads).map_err(|what| file.source().bad(what))?,
    };
    if keys.size("attention.value_length", limit::HEAD_DIM)?.is_some_and(|len| len != head_dim) {
        return Err(file
            .source()
            .unsupported("keys and values of different lengths are not supported", "use another model"));
    }
    let context_length = keys.need_size("context_length", limit::CONTEXT)?;
    let rotary_dim = keys.size("rope.dimension_count", head_dim)?.unwrap_or(head_dim);
    let base = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    let factors = keys.f32_tensor("rope_freqs.weight", rotary_dim / 2)?;
    let sizes = Sizes {
        n_layers,
        hidden_size,
        intermediate_size: match size("feed_forward_length", limit::INTERMEDIATE)? {
            Some(width) => width,
            None => match keys.size("expert_feed_forward_length", limit::INTERMEDIATE)? {
                Some(width) => width,
                None => keys.need_size("feed_forward_length", limit::INTERMEDIATE)?,
            },
        },
        n_heads,
        n_kv_heads: size("attention.head_count_kv", limit::HEADS)?.unwrap_or(n_heads),
        head_dim,
        vocab_size: gguf_vocab(keys)?,
        context_length,
    };
    let config = ModelConfig {
        rms_norm_eps: keys.positive("attention.layer_norm_rms_epsilon")?.unwrap_or(0.0) as f32,
        rope: keys.rope(rotary_dim, base, context_length, factors)?,
        ..ModelConfig::plain(family, gguf_name(keys)?, sizes)
    };
    check(&config).map_err(|what| file.source().bad(what))?;
    Ok(config)
}

fn gguf_name(keys: &GgufKeys<'_>) -> Result<String> {
    let file = keys.file();
    Ok(match file.metadata().str("general.name")? {
        Some(name) => name.to_owned(),
        None => {
            file.source().path().file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
        }
    })
}

fn gguf_vocab(keys: &GgufKeys<'_>) -> Result<usize> {
    let file = keys.file();
    let missing = || file.source().bad("tensor token_embd.weight is missing");
    let rows = keys.tensor("token_embd.weight").ok_or_else(missing)?.1.shape[0];
    if rows > limit::VOCAB {
        return Err(file.source().bad(format!("a vocabulary of {rows}; {} are allowed", limit::VOCAB)));
    }
    if let Some(tokens) = file.metadata().bytes_array("tokenizer.ggml.tokens")?
        && tokens.len() != rows
    {
        return Err(file.source().bad(format!(
            "the tokenizer has {} tokens, but token_embd.weight {rows} rows: they belong to different models",
            tokens.len()
        )));
    }
    Ok(rows)
}

/// The configuration of a `config.json` for most families.
pub(super) fn hf(family: &'static str, hf: &HfConfig<'_>, defaults: &HfDefaults) -> Result<ModelConfig> {
    let width = hf.size("intermediate_size", limit::INTERMEDIATE)?;
    hf_with_width(family, hf, defaults, width.ok_or_else(|| hf.bad("\"intermediate_size\" is missing"))?)
}

/// As [`hf`], with feed-forward blocks of width `intermediate_size`.
pub(super) fn hf_with_width(
    family: &'static str,
    hf: &HfConfig<'_>,
    defaults: &HfDefaults,
    intermediate_size: usize,
) -> Result<ModelConfig> {
    let need =
        |key: &str, max: usize| hf.size(key, max)?.ok_or_else(|| hf.bad(format!("{key:?} is missing")));
    let n_layers = need("num_hidden_layers", limit::LAYERS)?;
    let hidden_size = need("hidden_size", limit::HIDDEN)?;
    let n_heads = need("num_attention_heads", limit::HEADS)?;
    let head_dim = match hf.size("head_dim", limit::HEAD_DIM)?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None => even_share(hidden_size, n_heads).map_err(|what| hf.bad(what))?,
    };
    let sizes = Sizes {
        n_layers,
        hidden_size,
        intermediate_size,
        n_heads,
        n_kv_heads: hf.size("num_key_value_heads", limit::HEADS)?.or(defaults.kv_heads).unwrap_or(n_heads),
        head_dim,
        vocab_size: need("vocab_size", limit::VOCAB)?,
        context_length: need("max_position_embeddings", limit::CONTEXT)?,
    };
    let config = ModelConfig {
        rms_norm_eps: hf.positive("rms_norm_eps")?.unwrap_or(defaults.eps) as f32,
        activation: hf.activation(defaults.activation_key)?.unwrap_or(defaults.activation),
        ..ModelConfig::plain(family, hf.text("_name_or_path")?.unwrap_or_default().to_owned(), sizes)
    };
    check(&config).map_err(|what| hf.bad(what))?;
    Ok(config)
}

/// Reads the rotary embedding of every family but Gemma 3.
pub(super) fn hf_ropes(hf: &HfConfig<'_>, config: &mut ModelConfig) -> Result<()> {
    (config.rope, config.rope_long) = hf.ropes(config.head_dim, config.context_length)?;
    Ok(())
}

/// A window as long as the context has no effect and counts as none.
pub(super) fn drop_idle_windows(config: &mut ModelConfig) {
    let context = config.context_length;
    for window in &mut config.sliding_window {
        *window = window.filter(|&w| w < context);
    }
}

/// A factor that is positive and neither overflows nor vanishes in single precision.
pub(super) fn factor(what: &str, value: f64) -> Result<f32, String> {
    let factor = value as f32;
    if factor.is_normal() && factor > 0.0 {
        Ok(factor)
    } else {
        Err(format!("{what} is {value}, which is out of range"))
    }
}

/// A soft cap. A missing cap and 0 mean no cap.
pub(super) fn softcap(value: Option<f64>) -> Result<Option<f32>, String> {
    value.filter(|&cap| cap != 0.0).map(|cap| factor("a logit soft cap", cap)).transpose()
}

fn even_share(hidden_size: usize, n_heads: usize) -> Result<usize, String> {
    if hidden_size.is_multiple_of(n_heads) {
        Ok(hidden_size / n_heads)
    } else {
        Err(format!("a hidden size of {hidden_size} does not divide into {n_heads} heads"))
    }
}

/// Sets the recurrent layers. The others have attention; at least one of them is needed, because caches of keys and
/// values have the length of a sequence.
pub(super) fn set_recurrence(
    config: &mut ModelConfig,
    layers: Vec<bool>,
    kind: RecurrenceKind,
) -> Result<(), String> {
    if !layers.contains(&false) {
        return Err("there are no layers with attention".to_owned());
    }
    config.recurrence = layers.contains(&true).then_some(Recurrence { layers, kind });
    Ok(())
}

/// Leaves out the last layers of a GGUF file, which predict further tokens. They are not used.
pub(super) fn drop_predictors(keys: &GgufKeys<'_>, config: &mut ModelConfig) -> Result<()> {
    let predictors = keys.size_or_zero("nextn_predict_layers", config.n_layers - 1)?.unwrap_or(0);
    config.n_layers -= predictors;
    config.rope_layers.truncate(config.n_layers);
    config.sliding_window.truncate(config.n_layers);
    Ok(())
}

/// Checks the relations between sizes that hold in every model.
pub(super) fn check(config: &ModelConfig) -> Result<(), String> {
    let ModelConfig { n_heads, n_kv_heads, head_dim, rms_norm_eps: eps, .. } = *config;
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(format!("{n_heads} query heads cannot share {n_kv_heads} key/value heads evenly"));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(format!("heads of {head_dim} elements; an even number is needed"));
    }
    if !(eps > 0.0 && eps < 1.0) {
        return Err(format!("the epsilon of RMSNorm is missing or out of range ({eps})"));
    }
    Ok(())
}

/// An error with this message that names the GGUF file.
pub(super) fn bad(keys: &GgufKeys<'_>) -> impl Fn(String) -> Error {
    let source = keys.file().source();
    move |what| source.bad(what)
}
