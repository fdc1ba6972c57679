//! Gemma 4, its text part (transformers 5.24, `Gemma4TextModel`): five layers with a window to one global layer.
//!
//! * Heads of global layers are larger, and fewer KV heads share them. Of some sizes, their values are the keys.
//! * Global layers rotate a quarter of a head, in pairs `(i, i + d/2)` of the whole head.
//! * The last layers of E2B and E4B read the keys and values of earlier layers, and may have wider blocks.
//! * E2B and E4B have an input for each layer beside the residual stream.
//! * The 26B model has experts beside the block of each layer.
//!
//! Unlike in Gemma 3, the factor of a norm is `w` in both kinds of files.

use super::{Family, GgufKeys, HfConfig, TensorSpec, common, experts, gemma, rope, tensors};
use crate::{
    config::{Activation, ExpertWeighting, Experts, ModelConfig, Rope},
    error::Result,
};
use scrimp_kv::KvHeads;

/// Every sixth layer is global, unless the file says otherwise.
const PATTERN: usize = 6;
const GLOBAL_BASE: f64 = 1e6;
const LOCAL_BASE: f64 = 1e4;
/// The rotated share of a head of global layers.
const ROTATED: f64 = 0.25;
const WINDOW: usize = 512;

/// The family `gemma4`.
pub(super) struct Gemma4;

impl Family for Gemma4 {
    fn name(&self) -> &'static str {
        "gemma4"
    }

    fn hf_model_types(&self) -> &'static [&'static str] {
        &["gemma4", "gemma4_text"]
    }

    fn tied_by_default(&self) -> bool {
        true
    }

    fn gguf_config(&self, keys: &GgufKeys<'_>) -> Result<ModelConfig> {
        let bad = common::bad(keys);
        let mut config = common::gguf_with_layers(self.name(), keys)?;
        complete(&mut config);
        let n_layers = config.n_layers;
        gemma::gguf_windows(keys, &mut config, PATTERN)?;
        let mut kv_heads = keys.sizes("attention.head_count_kv", n_layers, common::limit::HEADS)?;
        kv_heads.resize(n_layers, config.n_kv_heads);
        let local_dim = keys.need_size("attention.key_length_swa", common::limit::HEAD_DIM)?;
        set_heads(&mut config, &kv_heads, local_dim).map_err(&bad)?;
        let shared = keys.size_or_zero("attention.shared_kv_layers", n_layers)?.unwrap_or(0);
        let mut widths = keys.sizes("feed_forward_length", n_layers, common::limit::INTERMEDIATE)?;
        widths.resize(n_layers, config.intermediate_size);
        gemma::set_shared_kv(&mut config, shared, &widths).map_err(&bad)?;
        let base = keys.positive("rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
        let rotated = keys.size("rope.dimension_count_swa", local_dim)?.unwrap_or(local_dim);
        config.rope_local = Some(rope::rope(rotated, base, &rope::Scaling::None, None, 1.0).map_err(&bad)?);
        let values = (0..n_layers)
            .find(|&layer| config.sliding_window[layer].is_none())
            .map(|layer| format!("blk.{layer}.attn_v.weight"));
        config.values_are_keys = values.is_some_and(|name| keys.tensor(&name).is_none());
        config.per_layer_input = gemma::gguf_layer_inputs(keys, config.vocab_size)?;
        config.final_logit_softcap =
            common::softcap(keys.number("final_logit_softcapping")?).map_err(&bad)?;
        if keys.size_or_zero("expert_count", experts::MAX_EXPERTS)?.is_some() {
            let experts =
                experts::gguf_experts(keys, ExpertWeighting::SoftmaxOfChosen, config.intermediate_size)?;
            config.experts = Some(Experts { beside_block: true, ..experts });
        }
        Ok(config)
    }

    fn hf_config(&self, hf: &HfConfig<'_>) -> Result<ModelConfig> {
        // A multimodal model has the language model's configuration in an object of its own.
        let text = hf.object("text_config")?.unwrap_or(*hf);
        let hf = &text.with_defaults(&[
            ("vocab_size", 262_144),
            ("hidden_size", 2304),
            ("intermediate_size", 9216),
            ("num_hidden_layers", 30),
            ("num_attention_heads", 8),
            ("max_position_embeddings", 131_072),
        ]);
        if hf.text("use_bidirectional_attention")? == Some("all") {
            return Err(
                hf.unsupported("attention in both directions is not supported", "use a decoder model")
            );
        }
        let (head_dim, kv_heads) = (Some(256), Some(4));
        let key = "hidden_activation";
        let defaults = common::HfDefaults {
            head_dim,
            kv_heads,
            activation: Activation::GeluTanh,
            activation_key: key,
            ..Default::default()
        };
        let mut config = common::hf(self.name(), hf, &defaults)?;
        complete(&mut config);
        let n_layers = config.n_layers;
        let window = hf.window(Some(WINDOW))?;
        config.sliding_window = hf.windows(n_layers, window, |layer| gemma::is_sliding(layer, PATTERN))?;
        // The class makes the last layer global.
        config.sliding_window.last_mut().into_iter().for_each(|window| *window = None);
        config.values_are_keys = hf.bool("attention_k_eq_v")?.unwrap_or(false);
        self.hf_heads(hf, &mut config)?;
        let shared = hf.count("num_kv_shared_layers")?.unwrap_or(0);
        let double = hf.bool("use_double_wide_mlp")?.unwrap_or(false);
        let wide = config.intermediate_size * if double { 2 } else { 1 };
        let mut widths = vec![config.intermediate_size; n_layers];
        widths[n_layers.saturating_sub(shared)..].fill(wide);
        gemma::set_shared_kv(&mut config, shared, &widths).map_err(|what| hf.bad(what))?;
        config.per_layer_input = gemma::hf_layer_inputs(hf)?;
        config.final_logit_softcap =
            common::softcap(hf.number("final_logit_softcapping")?).map_err(|what| hf.bad(what))?;
        if hf.bool("enable_moe_block")?.unwrap_or(false) {
            let per_token = hf.size("top_k_experts", experts::MAX_EXPERTS)?.unwrap_or(8);
            let width = hf.size("moe_intermediate_size", common::limit::INTERMEDIATE)?;
            let width = width.ok_or_else(|| hf.bad("\"moe_intermediate_size\" is missing"))?;
            let defaults = experts::HfDefaults { count: 128, per_token };
            let experts = experts::hf(hf, &defaults, ExpertWeighting::SoftmaxOfChosen, width)?;
            config.experts = Some(Experts { beside_block: true, ..experts });
        }
        Ok(config)
    }

    fn layer_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        tensors::plain_layer(config)
    }

    fn tensors_of_layer(&self, config: &ModelConfig, layer: usize) -> Vec<TensorSpec> {
        let (h, heads, width) = (config.hidden_size, config.heads(layer), config.block_width(layer));
        let values_are_keys = config.values_are_keys && config.sliding_window[layer].is_none();
        let of_layer = ModelConfig {
            n_kv_heads: heads.n_kv_heads,
            head_dim: heads.head_dim,
            intermediate_size: width,
            ..config.clone()
        };
        let mut specs = tensors::plain_layer(&of_layer);
        specs.retain(|spec| !spec.name.ends_with(".bias"));
        specs.extend(tensors::head_norms(&of_layer));
        // Files may hold the projections of layers that read earlier keys and values. They are not used.
        let unused = |name: &str| match name {
            "attn_k.weight" | "attn_k_norm.weight" => config.shares_kv(layer),
            "attn_v.weight" => config.shares_kv(layer) || values_are_keys,
            _ => false,
        };
        specs.retain(|spec| !unused(&spec.name));
        specs.extend([
            tensors::required("post_attention_norm.weight", &[h]),
            tensors::required("post_ffw_norm.weight", &[h]),
            tensors::optional("layer_output_scale.weight", &[1]),
        ]);
        specs.extend(gemma::layer_input(config));
        if let Some(experts) = config.experts {
            specs.extend(tensors::experts(config));
            specs.extend([
                tensors::required("router_scale.weight", &[h]),
                tensors::required("expert_scales.weight", &[experts.count]),
                tensors::required("pre_ffw_norm_2.weight", &[h]),
                tensors::required("post_ffw_norm_1.weight", &[h]),
                tensors::required("post_ffw_norm_2.weight", &[h]),
            ]);
        }
        specs
    }

    fn other_tensors(&self, config: &ModelConfig) -> Vec<TensorSpec> {
        gemma::layer_inputs(config)
    }

    fn layer_tensor_name(&self, hf: &str) -> Option<&'static str> {
        Some(match hf {
            "layer_scalar" => "layer_output_scale",
            "pre_feedforward_layernorm_2" => "pre_ffw_norm_2",
            "post_feedforward_layernorm_1" => "post_ffw_norm_1",
            "post_feedforward_layernorm_2" => "post_ffw_norm_2",
            "router.proj" => "ffn_gate_inp",
            "router.scale" => "router_scale",
            "router.per_expert_scale" => "expert_scales",
            "experts.gate_up_proj" => "ffn_gate_up_exps",
            "experts.down_proj" => "ffn_down_exps",
            _ => return gemma::layer_tensor_name(hf),
        })
    }

    fn gguf_alias(&self, name: &str) -> Option<&'static str> {
        match name {
            "ffn_gate_inp.scale" => Some("router_scale.weight"),
            "ffn_down_exps.scale" => Some("expert_scales.weight"),
            _ => None,
        }
    }
}

impl Gemma4 {
    /// The heads and rotary embeddings of both kinds of layers.
    fn hf_heads(&self, hf: &HfConfig<'_>, config: &mut ModelConfig) -> Result<()> {
        let (local_dim, context) = (config.head_dim, config.context_length);
        // transformers 5 writes the numbers of each global layer, published files one number for all.
        let layers = hf.object("per_layer_config")?;
        let global = config.sliding_window.iter().position(Option::is_none).unwrap_or(0).to_string();
        let of_layer = layers.map(|layers| layers.object(&global)).transpose()?.flatten();
        let global_size = |key: &str, own: &str, max: usize| -> Result<Option<usize>> {
            match of_layer {
                Some(layer) => layer.size(own, max),
                None => hf.size(key, max),
            }
        };
        let dim = global_size("global_head_dim", "head_dim", common::limit::HEAD_DIM)?;
        let count = global_size("num_global_key_value_heads", "num_key_value_heads", common::limit::HEADS)?;
        let (local, count) = (config.n_kv_heads, count.filter(|_| config.values_are_keys));
        let global = KvHeads { count: count.unwrap_or(local), dim: dim.unwrap_or(512) };
        let kv_heads: Vec<usize> = config
            .sliding_window
            .iter()
            .map(|window| if window.is_some() { local } else { global.count })
            .collect();
        config.head_dim = global.dim;
        set_heads(config, &kv_heads, local_dim).map_err(|what| hf.bad(what))?;
        let parameters = hf.object("rope_parameters")?;
        let of_kind = |kind: &str| -> Result<Option<HfConfig<'_>>> {
            Ok(parameters.map(|p| p.object(kind)).transpose()?.flatten())
        };
        let object = of_kind("sliding_attention")?;
        let base = object.map(|o| o.positive("rope_theta")).transpose()?.flatten().unwrap_or(LOCAL_BASE);
        config.rope_local = Some(hf.ropes_with(object, base, local_dim, context)?.0);
        let object = of_kind("full_attention")?;
        let base = object.map(|o| o.positive("rope_theta")).transpose()?.flatten().unwrap_or(GLOBAL_BASE);
        let kind = object.map(|o| o.text("rope_type")).transpose()?.flatten().unwrap_or("proportional");
        config.rope = if kind == "proportional" {
            let share = object.map(|o| o.positive("partial_rotary_factor")).transpose()?.flatten();
            let factor = object.map(|o| o.positive("factor")).transpose()?.flatten().unwrap_or(1.0);
            let default = if object.is_some() { 1.0 } else { ROTATED };
            proportional(config.head_dim, base, share.unwrap_or(default), factor)
                .map_err(|what| hf.bad(what))?
        } else {
            hf.ropes_with(object, base, config.head_dim, context)?.0
        };
        Ok(())
    }
}

/// The rotary embedding of the first pairs `(i, i + dim/2)` of a head, a share of all. The others do not rotate.
fn proportional(dim: usize, base: f64, share: f64, factor: f64) -> Result<Rope, String> {
    if share > 1.0 {
        return Err(format!("\"partial_rotary_factor\" is {share}, but must not pass 1"));
    }
    let mut rope = rope::rope(dim, base, &rope::Scaling::Linear { factor }, None, 1.0)?;
    let rotated = (share * dim as f64) as usize / 2;
    rope.inv_freq[rotated..].fill(0.0);
    Ok(rope)
}

/// What all models of the family have.
fn complete(config: &mut ModelConfig) {
    config.activation = Activation::GeluTanh;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    config.attn_scale = 1.0;
    config.value_norm = true;
}

/// Sets the heads of both kinds of layers. `head_dim` is that of global layers already.
fn set_heads(config: &mut ModelConfig, kv_heads: &[usize], local_dim: usize) -> Result<(), String> {
    let of_kind = |windowed: bool| {
        let layers = config.sliding_window.iter().zip(kv_heads);
        let mut counts = layers.filter(|(window, _)| window.is_some() == windowed).map(|(_, &heads)| heads);
        let first = counts.next();
        if counts.any(|heads| Some(heads) != first) {
            return Err("layers of one kind have different numbers of KV heads".to_owned());
        }
        Ok(first)
    };
    let (global, local) = (of_kind(false)?, of_kind(true)?);
    let Some(global) = global else { return Err("there are no layers with full attention".to_owned()) };
    config.n_kv_heads = global;
    let heads = local.map(|count| KvHeads { count, dim: local_dim });
    config.window_heads = heads.filter(|heads| *heads != KvHeads { count: global, dim: config.head_dim });
    common::check(config)
}
