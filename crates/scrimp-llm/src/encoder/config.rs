//! The configuration of an encoder from `config.json`, and the names of its tensors.

use crate::{
    error::{Error, Result},
    families::HfConfig,
};

/// Values of `model_type` that are encoders.
pub const MODEL_TYPES: &[&str] = &["bert", "roberta", "xlm-roberta", "nomic_bert"];

/// Bounds of sizes; larger ones are damaged files.
const MAX_SIZE: usize = 1 << 20;

/// Non-linearity of the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// `gelu(up)`
    Gelu,
    /// `gelu(up)` with the tanh approximation.
    GeluTanh,
    /// `silu(gate) * up`
    Swiglu,
}

/// The properties of an encoder.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// One of [`MODEL_TYPES`].
    pub model_type: &'static str,
    /// Layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// The most tokens of a text, with the special ones.
    pub max_tokens: usize,
    /// Epsilon of LayerNorm.
    pub layer_norm_eps: f32,
    pub(super) activation: Activation,
    /// Base of the rotary embedding; `None`: learned positions.
    pub(super) rope_base: Option<f64>,
    /// Row of the position embedding of the first token.
    pub(super) first_position: usize,
}

impl EncoderConfig {
    /// Reads `config.json`; `None` if it is not that of an encoder.
    ///
    /// # Errors
    /// When a size is missing or out of bounds, or a feature is not supported.
    pub fn read(hf: &HfConfig<'_>) -> Result<Option<Self>> {
        let name = hf.text("model_type")?.unwrap_or_default();
        let Some(model_type) = MODEL_TYPES.iter().copied().find(|known| *known == name) else {
            return Ok(None);
        };
        let size = |keys: [&str; 2]| -> Result<usize> {
            match hf.size(keys[0], MAX_SIZE)? {
                Some(size) => Ok(size),
                None => {
                    hf.size(keys[1], MAX_SIZE)?.ok_or_else(|| hf.bad(format!("{:?} is missing", keys[0])))
                }
            }
        };
        let (hidden_size, n_heads) =
            (size(["hidden_size", "n_embd"])?, size(["num_attention_heads", "n_head"])?);
        let positions = size(["max_position_embeddings", "n_positions"])?;
        let roberta = matches!(model_type, "roberta" | "xlm-roberta");
        let first_position = if roberta { hf.count("pad_token_id")?.unwrap_or(1) + 1 } else { 0 };
        let eps = match hf.positive("layer_norm_eps")? {
            Some(eps) => eps,
            None => hf.positive("layer_norm_epsilon")?.unwrap_or(1e-12),
        };
        let config = Self {
            model_type,
            n_layers: size(["num_hidden_layers", "n_layer"])?,
            hidden_size,
            intermediate_size: size(["intermediate_size", "n_inner"])?,
            n_heads,
            vocab_size: size(["vocab_size", "vocab_size"])?,
            max_tokens: positions.checked_sub(first_position).filter(|&n| n > 0).ok_or_else(|| {
                hf.bad(format!("\"max_position_embeddings\" is {positions}, too small for \"pad_token_id\""))
            })?,
            layer_norm_eps: eps as f32,
            activation: activation(hf, model_type)?,
            rope_base: if model_type == "nomic_bert" { Some(rope_base(hf)?) } else { None },
            first_position,
        };
        config.check(hf)?;
        Ok(Some(config))
    }

    fn check(&self, hf: &HfConfig<'_>) -> Result<()> {
        let (hidden, heads) = (self.hidden_size, self.n_heads);
        if !hidden.is_multiple_of(heads) || !(hidden / heads).is_multiple_of(16) {
            return Err(hf.unsupported(
                &format!("{heads} attention heads of together {hidden} elements"),
                "the size of a head must be a multiple of 16",
            ));
        }
        if hf.text("position_embedding_type")?.is_some_and(|kind| kind != "absolute" && kind != "rotary") {
            return Err(hf.unsupported("relative positions", "use a model with absolute or rotary positions"));
        }
        if hf.bool("prenorm")?.unwrap_or(false) || hf.bool("use_rms_norm")?.unwrap_or(false) {
            return Err(hf.unsupported("an encoder with norms before its blocks", "use another model"));
        }
        Ok(())
    }

    /// Elements of a head.
    pub(super) fn head_dim(&self) -> usize {
        self.hidden_size / self.n_heads
    }
}

fn activation(hf: &HfConfig<'_>, model_type: &str) -> Result<Activation> {
    let name = match hf.text("hidden_act")? {
        Some(name) => name,
        None => hf.text("activation_function")?.unwrap_or("gelu"),
    };
    match (name, model_type) {
        ("gelu", "bert" | "roberta" | "xlm-roberta") => Ok(Activation::Gelu),
        ("gelu_new" | "gelu_pytorch_tanh", "bert" | "roberta" | "xlm-roberta") => Ok(Activation::GeluTanh),
        ("silu" | "swiglu", "nomic_bert") => Ok(Activation::Swiglu),
        _ => Err(hf.unsupported(&format!("activation {name:?}"), "gelu and (for Nomic's models) swiglu are")),
    }
}

fn rope_base(hf: &HfConfig<'_>) -> Result<f64> {
    if hf.number("rotary_emb_fraction")?.is_some_and(|fraction| fraction != 1.0) {
        return Err(hf.unsupported("partial rotary embeddings in an encoder", "use another model"));
    }
    if let Some(base) = hf.positive("rotary_emb_base")? {
        return Ok(base);
    }
    match hf.object("rope_parameters")? {
        Some(rope) => Ok(rope.positive("rope_theta")?.unwrap_or(1000.0)),
        None => Ok(1000.0),
    }
}

/// Tensors outside the layers: Hugging Face's names and ours, which are GGUF's where it has one.
const TOP: [(&str, &str); 9] = [
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("emb_ln", "token_embd_norm"),
    ("pooler.dense", "pooler"),
    ("classifier.dense", "pooler"),
    ("classifier.out_proj", "classifier"),
    ("classifier", "classifier"),
];

/// Tensors of a layer.
const LAYER: [(&str, &str); 23] = [
    ("attention.self.query", "attn_q"),
    ("attention.self.key", "attn_k"),
    ("attention.self.value", "attn_v"),
    ("attention.output.dense", "attn_output"),
    ("attention.output.LayerNorm", "attn_output_norm"),
    ("intermediate.dense", "ffn_up"),
    ("output.dense", "ffn_down"),
    ("output.LayerNorm", "layer_output_norm"),
    ("attn.Wqkv", "attn_qkv"),
    ("attn.out_proj", "attn_output"),
    ("norm1", "attn_output_norm"),
    ("mlp.fc11", "ffn_up"),
    ("mlp.fc12", "ffn_gate"),
    ("mlp.fc2", "ffn_down"),
    ("norm2", "layer_output_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "attn_output_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("post_mlp_layernorm", "layer_output_norm"),
];

/// Our name of a tensor; `None` for tensors that an encoder does not need.
pub(super) fn tensor_name(hf: &str) -> Option<String> {
    let name =
        ["bert.", "roberta.", "model."].iter().find_map(|prefix| hf.strip_prefix(prefix)).unwrap_or(hf);
    let (stem, kind) = name.rsplit_once('.')?;
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let by = |all: &[(&str, &'static str)], stem: &str| {
        all.iter().find(|(theirs, _)| *theirs == stem).map(|(_, ours)| *ours)
    };
    if let Some(ours) = by(&TOP, stem) {
        return Some(format!("{ours}.{kind}"));
    }
    let layers = ["encoder.layer.", "encoder.layers.", "layers."];
    let rest = layers.iter().find_map(|prefix| stem.strip_prefix(prefix))?;
    let (index, stem) = rest.split_once('.')?;
    let index: usize = index.parse().ok()?;
    let ours = if stem == "mlp.down_proj" { Some("ffn_down") } else { by(&LAYER, stem) };
    Some(format!("blk.{index}.{}.{kind}", ours?))
}

/// The error for a missing tensor.
pub(super) fn missing(path: &std::path::Path, name: &str) -> Error {
    Error::damaged_file(path, format!("tensor {name} is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_three_kinds_of_encoders() {
        for (theirs, ours) in [
            ("bert.embeddings.word_embeddings.weight", "token_embd.weight"),
            ("encoder.layer.11.attention.output.LayerNorm.bias", "blk.11.attn_output_norm.bias"),
            ("roberta.encoder.layer.0.output.dense.weight", "blk.0.ffn_down.weight"),
            ("encoder.layers.3.attn.Wqkv.weight", "blk.3.attn_qkv.weight"),
            ("layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"),
            ("classifier.out_proj.bias", "classifier.bias"),
        ] {
            assert_eq!(tensor_name(theirs).as_deref(), Some(ours));
        }
        for other in
            ["embeddings.position_ids", "cls.predictions.bias", "encoder.layer.x.output.dense.weight"]
        {
            assert_eq!(tensor_name(other), None, "{other}");
        }
    }
}
