//! Granite 4, of which only the dense models without Mamba-2 layers run: Granite 3's layer with gate and up in one
//! matrix, with or without RoPE in all layers.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, granite, tensors};
use crate::{config::ModelConfig, error::Result};

const HINT: &str = "dense models of Granite 4 without -h in their name are supported";

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
        Err(keys.file().source().unsupported("GGUF files of Granite 4 hybrids are not supported", HINT))
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        if hf.count("num_local_experts")?.unwrap_or(8) > 0 {
            return Err(hf.unsupported("mixtures of experts are not supported", HINT));
        }
        let types =
            hf.get("layer_types").or(hf.get("layers_block_type")).and_then(serde_json::Value::as_array);
        let is_attention = |kind: &serde_json::Value| kind == "attention" || kind == "full_attention";
        if !types.is_some_and(|types| types.iter().all(is_attention)) {
            return Err(hf.unsupported("layers of Mamba-2 are not supported", HINT));
        }
        let mut config = common::hf(self.name(), hf, &common::HfDefaults::default())?;
        config.intermediate_size =
            hf.size("shared_intermediate_size", common::limit::INTERMEDIATE)?.unwrap_or(1024);
        common::hf_ropes(hf, &mut config)?;
        granite::hf_factors(hf, &mut config)?;
        let rope = hf.text("position_embedding_type")? == Some("rope");
        config.rope_layers.fill(rope);
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        let mut layer = tensors::plain_layer(config);
        layer.retain(|spec| spec.name != "ffn_gate.weight");
        for spec in layer.iter_mut().filter(|spec| spec.name == "ffn_up.weight") {
            spec.shape[0] = 2 * config.intermediate_size;
        }
        layer
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        match hf {
            "shared_mlp.input_linear" => Some("ffn_up"),
            "shared_mlp.output_linear" => Some("ffn_down"),
            _ => tensors::layer_tensor_name(hf),
        }
    }
}
