//! Names and shapes of tensors.

use super::Family;
use crate::config::ModelConfig;

/// Whether a tensor is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Required.
    Required,
    /// Optional.
    Optional,
    /// Required unless the layer has the tensor with this name.
    Unless(&'static str),
}

/// A tensor's name and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// GGUF's name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Whether it is required.
    pub need: Need,
}

impl TensorSpec {
    /// The tensors of a compressed file for this tensor. Phi-3's QKV and gate-and-up are stored as their parts; all
    /// other tensors are unchanged.
    pub(crate) fn unfused(self, c: &ModelConfig) -> Vec<Self> {
        let parts = if self.name.ends_with("attn_qkv.weight") {
            vec![("attn_q", c.q_dim()), ("attn_k", c.kv_dim()), ("attn_v", c.kv_dim())]
        } else if self.name.ends_with("ffn_up.weight") && self.shape[0] == 2 * c.intermediate_size {
            vec![("ffn_gate", c.intermediate_size), ("ffn_up", c.intermediate_size)]
        } else {
            return vec![self];
        };
        let layer = self.name.rsplit_once('.').and_then(|(stem, _)| stem.rsplit_once('.'));
        let layer = layer.map(|(layer, _)| layer).unwrap_or_default();
        let part = |(stem, rows)| Self {
            name: format!("{layer}.{stem}.weight"),
            shape: vec![rows, self.shape[1]],
            need: self.need,
        };
        parts.into_iter().map(part).collect()
    }
}

impl TensorSpec {
    /// The tensors of a file for this tensor, given the names in the file. The matrices of all experts, `[experts][rows]
    /// [columns]`, may be one tensor, one with gate and up of each expert below each other, or one for each expert; or
    /// as gpt-oss stores them ([`interleaved`]).
    pub(crate) fn stored_as(self, has: impl Fn(&str) -> bool) -> Vec<Self> {
        let split = self.name.split_once("_exps.").filter(|_| !has(&self.name));
        let Some((stem, kind)) = split else { return vec![self] };
        if let Some(found) = interleaved(&self, stem, kind, &has) {
            return found;
        }
        let [experts, rows, cols] = self.shape[..] else { return vec![self] };
        let fused = stem.strip_suffix("ffn_gate").or(stem.strip_suffix("ffn_up"));
        if let Some(name) =
            fused.map(|layer| format!("{layer}ffn_gate_up_exps.weight")).filter(|name| has(name))
        {
            return vec![Self { name, shape: vec![experts, 2 * rows, cols], need: self.need }];
        }
        let one = |expert| Self {
            name: format!("{stem}.{expert}.weight"),
            shape: vec![rows, cols],
            need: self.need,
        };
        if has(&one(0).name) { (0..experts).map(one).collect() } else { vec![self] }
    }
}

/// The tensors of gpt-oss for the matrices or biases `spec` of all experts. Gate and up are one matrix with
/// alternating rows. Matrices of floats are transposed; those of MXFP4 are blocks and scales.
fn interleaved(
    spec: &TensorSpec,
    stem: &str,
    kind: &str,
    has: impl Fn(&str) -> bool,
) -> Option<Vec<TensorSpec>> {
    let (layer, matrix) = stem.rsplit_once('.')?;
    let (matrix, parts) = if matrix == "ffn_down" { (matrix, 1) } else { ("ffn_gate_up", 2) };
    let of = |suffix: &str, shape: &[usize]| TensorSpec {
        name: format!("{layer}.{matrix}_exps_{suffix}.weight"),
        shape: shape.to_vec(),
        need: spec.need,
    };
    let found = match (kind, &spec.shape[..]) {
        ("bias", &[experts, rows]) => vec![of("bias", &[experts, parts * rows])],
        ("weight", &[experts, rows, cols]) => {
            let columns = of("columns", &[experts, cols, parts * rows]);
            if has(&columns.name) {
                return Some(vec![columns]);
            }
            let groups = [experts, parts * rows, cols / 32];
            vec![of("blocks", &[&groups[..], &[16]].concat()), of("scales", &groups)]
        }
        _ => return None,
    };
    has(&found[0].name).then_some(found)
}

fn spec(name: &str, shape: &[usize], need: Need) -> TensorSpec {
    TensorSpec { name: name.to_owned(), shape: shape.to_vec(), need }
}

/// A required tensor.
pub(super) fn required(name: &str, shape: &[usize]) -> TensorSpec {
    spec(name, shape, Need::Required)
}

/// An optional tensor.
pub(super) fn optional(name: &str, shape: &[usize]) -> TensorSpec {
    spec(name, shape, Need::Optional)
}

/// A tensor that is required unless the layer has the tensor `other`.
pub(super) fn required_unless(name: &str, shape: &[usize], other: &'static str) -> TensorSpec {
    spec(name, shape, Need::Unless(other))
}

/// The norms of each query head and each key head.
pub(super) fn head_norms(c: &ModelConfig) -> [TensorSpec; 2] {
    ["attn_q_norm.weight", "attn_k_norm.weight"].map(|name| required(name, &[c.head_dim]))
}

/// Removes the tensors of attention from a layer; the norm before it stays.
pub(super) fn remove_attention(layer: &mut Vec<TensorSpec>) {
    layer.retain(|spec| !spec.name.starts_with("attn_") || spec.name == "attn_norm.weight");
}

/// The layer of most families: separate Q, K, V, gate and up. The four matrices of attention may have biases.
pub(super) fn plain_layer(c: &ModelConfig) -> Vec<TensorSpec> {
    let (h, q, kv, f) = (c.hidden_size, c.q_dim(), c.kv_dim(), c.intermediate_size);
    vec![
        required("attn_norm.weight", &[h]),
        required("attn_q.weight", &[q, h]),
        required("attn_k.weight", &[kv, h]),
        required("attn_v.weight", &[kv, h]),
        required("attn_output.weight", &[h, q]),
        optional("attn_q.bias", &[q]),
        optional("attn_k.bias", &[kv]),
        optional("attn_v.bias", &[kv]),
        optional("attn_output.bias", &[h]),
        required("ffn_norm.weight", &[h]),
        required("ffn_gate.weight", &[f, h]),
        required("ffn_up.weight", &[f, h]),
        required("ffn_down.weight", &[h, f]),
    ]
}

/// The router and the experts of a layer.
pub(super) fn experts(c: &ModelConfig) -> [TensorSpec; 4] {
    let h = c.hidden_size;
    let (experts, f) = c.experts.map_or((0, 0), |experts| (experts.count, experts.width));
    [
        required("ffn_gate_inp.weight", &[experts, h]),
        required("ffn_gate_exps.weight", &[experts, f, h]),
        required("ffn_up_exps.weight", &[experts, f, h]),
        required("ffn_down_exps.weight", &[experts, h, f]),
    ]
}

/// A layer with a router and experts instead of gate, up and down.
pub(super) fn expert_layer(c: &ModelConfig) -> Vec<TensorSpec> {
    let mut layer = plain_layer(c);
    layer.retain(|spec| {
        !matches!(spec.name.as_str(), "ffn_gate.weight" | "ffn_up.weight" | "ffn_down.weight")
    });
    layer.extend(experts(c));
    let h = c.hidden_size;
    if let Some(width) = c.experts.and_then(|experts| experts.shared) {
        layer.extend([
            required("ffn_gate_inp_shexp.weight", &[h]),
            required("ffn_gate_shexp.weight", &[width, h]),
            required("ffn_up_shexp.weight", &[width, h]),
            required("ffn_down_shexp.weight", &[h, width]),
        ]);
    }
    layer
}

/// A layer whose shared expert has no gate.
pub(super) fn ungated(mut layer: Vec<TensorSpec>) -> Vec<TensorSpec> {
    layer.retain(|spec| spec.name != "ffn_gate_inp_shexp.weight");
    layer
}

/// The layer `index` with experts, or with one block where the model has dense layers.
pub(super) fn layer_of(c: &ModelConfig, index: usize) -> Vec<TensorSpec> {
    if c.experts_of(index).is_some() { expert_layer(c) } else { plain_layer(c) }
}

/// All tensors of a model. `output.weight` is optional: without it, the embedding is the output matrix.
pub(super) fn expected<'a>(
    family: &'a dyn Family,
    c: &'a ModelConfig,
) -> impl Iterator<Item = TensorSpec> + 'a {
    let table = [c.vocab_size, c.hidden_size];
    let layers = (0..c.n_layers).flat_map(|i| {
        family.tensors_of_layer(c, i).into_iter().map(move |mut spec| {
            spec.name = format!("blk.{i}.{}", spec.name);
            spec
        })
    });
    std::iter::once(required("token_embd.weight", &table))
        .chain(family.other_tensors(c))
        .chain(layers)
        .chain([required("output_norm.weight", &[c.hidden_size]), optional("output.weight", &table)])
}

/// Names that all families share, except for the norms of Gemma 3.
pub(super) fn layer_tensor_name(hf: &str) -> Option<&'static str> {
    Some(match hf {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.gate" => "ffn_gate_inp",
        "mlp.experts.gate_proj" => "ffn_gate_exps",
        "mlp.experts.up_proj" => "ffn_up_exps",
        "mlp.experts.gate_up_proj" => "ffn_gate_up_exps",
        "mlp.experts.down_proj" => "ffn_down_exps",
        _ => return None,
    })
}

pub(super) fn gguf_tensor_name(family: &dyn Family, hf: &str) -> Option<String> {
    // The language model in a multimodal model has `language_model` before or after `model`.
    let name = hf.strip_prefix("language_model.").unwrap_or(hf);
    if name == "lm_head.weight" {
        return Some("output.weight".to_owned());
    }
    // Base models, such as embedding models, have no `model` around them.
    let name = name.strip_prefix("model.").unwrap_or(name);
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    match name {
        "embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "norm.weight" | "embedding_norm.weight" => return Some("output_norm.weight".to_owned()),
        "embed_tokens_per_layer.weight" => return Some("per_layer_token_embd.weight".to_owned()),
        "per_layer_model_projection.weight" => return Some("per_layer_model_proj.weight".to_owned()),
        "per_layer_projection_norm.weight" => return Some("per_layer_proj_norm.weight".to_owned()),
        _ => {}
    }
    for (hf, stem) in
        [("altup_projections.", "altup_proj."), ("altup_unembed_projections.", "altup_unembd_proj.")]
    {
        if let Some(rest) = name.strip_prefix(hf) {
            return Some(format!("{stem}{rest}"));
        }
    }
    let (index, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let layer: usize = index.parse().ok()?;
    // The matrices of all experts in one tensor have no `.weight`.
    let (stem, kind) = match rest.rsplit_once('.') {
        Some((stem, kind @ ("weight" | "bias"))) => (stem, kind),
        _ => (rest, "weight"),
    };
    // One expert: `mlp.experts.7.gate_proj`.
    if let Some((block, (expert, matrix))) = split_expert(stem) {
        let all = family.layer_tensor_name(&format!("{block}.experts.{matrix}"))?;
        return Some(format!("blk.{layer}.{}.{expert}.{kind}", all.strip_suffix("_exps")?));
    }
    Some(format!("blk.{layer}.{}.{kind}", family.layer_tensor_name(stem)?))
}

/// `BLOCK.experts.N.MATRIX` as BLOCK, N and MATRIX.
fn split_expert(stem: &str) -> Option<(&str, (usize, &str))> {
    let (block, rest) = stem.split_once(".experts.")?;
    let (expert, matrix) = rest.split_once('.')?;
    Some((block, (expert.parse().ok()?, matrix)))
}
