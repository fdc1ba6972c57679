//! Model families: the meaning of a file's metadata, and the names of its tensors.
//!
//! To add a family, write one file with a [`Family`] in it and add it to [`FAMILIES`].

mod common;
mod experts;
mod gated_delta;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n;
mod gemma4;
mod gguf_keys;
mod glm4;
mod glm4moe;
mod gpt_oss;
mod granite;
mod granite_hybrid;
mod granitemoe;
mod hf_config;
mod lfm2;
mod lfm2moe;
mod llama;
mod mistral3;
mod olmo2;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen35;
mod qwen35moe;
mod qwen3moe;
mod qwen3next;
mod rope;
mod smollm3;
pub mod stored;
mod tensors;

pub use self::{
    gguf_keys::GgufKeys,
    hf_config::HfConfig,
    tensors::{Need, TensorSpec},
};
use crate::{
    config::ModelConfig,
    error::{Error, Result},
};

/// All families.
pub const FAMILIES: &[&dyn Family] = &[
    &llama::Llama,
    &qwen2::Qwen2,
    &qwen3::Qwen3,
    &qwen3moe::Qwen3Moe,
    &qwen35::Qwen35,
    &qwen35moe::Qwen35Moe,
    &qwen3next::Qwen3Next,
    &gemma2::Gemma2,
    &gemma3::Gemma3,
    &gemma3n::Gemma3n,
    &gemma4::Gemma4,
    &phi3::Phi3,
    &smollm3::SmolLm3,
    &granite::Granite,
    &granitemoe::GraniteMoe,
    &granite_hybrid::GraniteHybrid,
    &olmo2::Olmo2,
    &olmoe::Olmoe,
    &mistral3::Mistral3,
    &gpt_oss::GptOss,
    &lfm2::Lfm2,
    &lfm2moe::Lfm2Moe,
    &glm4::Glm4,
    &glm4moe::Glm4Moe,
];

/// One architecture of decoder-only transformers.
pub trait Family: Sync {
    /// GGUF's name for it (`general.architecture`).
    fn name(&self) -> &'static str;

    /// Values of `model_type` in Hugging Face's `config.json`.
    fn hf_model_types(&self) -> &'static [&'static str];

    /// Reads the configuration of a GGUF file.
    ///
    /// # Errors
    /// When metadata is missing, contradictory or out of bounds.
    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig>;

    /// Reads Hugging Face's `config.json`.
    ///
    /// # Errors
    /// As [`Family::gguf_config`].
    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig>;

    /// Whether the output matrix is the embedding if `config.json` has no such key.
    fn tied_by_default(&self) -> bool {
        false
    }

    /// Shapes of a layer's tensors, without `blk.N.`.
    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec>;

    /// Shapes of the tensors of a recurrent layer, without `blk.N.`.
    fn recurrent_layer_tensors(&self, _config: &ModelConfig) -> Vec<TensorSpec> {
        Vec::new()
    }

    /// Shapes of the tensors of layer `layer`, without `blk.N.`.
    fn tensors_of_layer(&self, config: &ModelConfig, layer: usize) -> Vec<TensorSpec> {
        match config.is_recurrent(layer) {
            true => self.recurrent_layer_tensors(config),
            false => self.layer_tensors(config),
        }
    }

    /// Shapes of the tensors outside of layers, beside the embedding, the output matrix and its norm.
    fn other_tensors(&self, _config: &ModelConfig) -> Vec<TensorSpec> {
        Vec::new()
    }

    /// GGUF's name of a layer's tensor (`attn_q`) for Hugging Face's (`self_attn.q_proj`), both without prefix and
    /// without `.weight` or `.bias`.
    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        tensors::layer_tensor_name(hf)
    }

    /// The name by which scrimp has the tensor `name` of a GGUF file, if it is another: that of [`Family::layer_tensors`] for
    /// tensors of layers.
    fn gguf_alias(&self, _name: &str) -> Option<&'static str> {
        None
    }
}

/// The family of a GGUF file's architecture.
///
/// # Errors
/// There is no such family; the hint lists all.
pub fn by_architecture(name: &str) -> Result<&'static dyn Family> {
    FAMILIES.iter().copied().find(|f| f.name() == name).ok_or_else(|| unknown(name))
}

/// The family of a `model_type` in `config.json`.
///
/// # Errors
/// There is no such family; the hint lists all.
pub fn by_model_type(name: &str) -> Result<&'static dyn Family> {
    FAMILIES.iter().copied().find(|f| f.hf_model_types().contains(&name)).ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> Error {
    let known: Vec<_> = FAMILIES.iter().map(|f| f.name()).collect();
    Error::unsupported(
        format!("models of architecture {name:?} are not supported"),
        format!("these are: {}", known.join(", ")),
    )
}

/// GGUF's name for Hugging Face's tensor name `hf`, or `None` for a tensor outside the decoder
/// (vision towers, stored rotary frequencies).
pub fn gguf_tensor_name(family: &dyn Family, hf: &str) -> Option<String> {
    tensors::gguf_tensor_name(family, hf)
}

/// All tensors of a model and their shapes, in the order in which a forward pass needs them.
pub fn expected_tensors<'a>(
    family: &'a dyn Family,
    config: &'a ModelConfig,
) -> impl Iterator<Item = TensorSpec> + 'a {
    tensors::expected(family, config)
}
