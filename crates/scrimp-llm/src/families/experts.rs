//! The routing of mixtures of experts in metadata.

use super::{GgufKeys, HfConfig, common};
use crate::{
    config::{ExpertGroups, ExpertWeighting, Experts, ModelConfig, SigmoidRouting},
    error::Result,
};

/// GGUF's number of the sigmoid (`expert_gating_func`).
const SIGMOID: usize = 2;
/// Largest number of experts of a layer.
pub(super) const MAX_EXPERTS: usize = 1 << 12;

/// Defaults of Hugging Face's configuration classes.
pub(super) struct HfDefaults {
    pub(super) count: usize,
    pub(super) per_token: usize,
}

/// The configuration of a GGUF file of a family with experts in all layers.
pub(super) fn gguf(
    family: &'static str,
    keys: &GgufKeys<'_>,
    weighting: ExpertWeighting,
) -> Result<ModelConfig> {
    let mut config = common::gguf_with_experts(family, keys)?;
    let experts = gguf_experts(keys, weighting, config.intermediate_size)?;
    config.intermediate_size = experts.width;
    config.experts = Some(experts);
    Ok(config)
}

/// The routing in a GGUF file. `width`: of experts, unless the file has another.
pub(super) fn gguf_experts(keys: &GgufKeys<'_>, weighting: ExpertWeighting, width: usize) -> Result<Experts> {
    let experts = Experts {
        shared: keys.size_or_zero("expert_shared_feed_forward_length", common::limit::INTERMEDIATE)?,
        ..Experts::plain(
            keys.need_size("expert_count", MAX_EXPERTS)?,
            keys.need_size("expert_used_count", MAX_EXPERTS)?,
            keys.size("expert_feed_forward_length", common::limit::INTERMEDIATE)?.unwrap_or(width),
            weighting,
        )
    };
    check(experts).map_err(|what| keys.file().source().bad(what))
}

/// Routing by sigmoids in a GGUF file. `normalized`: the weights of the chosen experts add up to the scale, unless the
/// file says otherwise.
pub(super) fn gguf_sigmoid(keys: &GgufKeys<'_>, normalized: bool) -> Result<ExpertWeighting> {
    let source = keys.file().source();
    if keys.size("expert_gating_func", 8)?.is_some_and(|function| function != SIGMOID) {
        let what = "routing by another function than the sigmoid is not supported";
        return Err(source.unsupported(what, "convert the model again"));
    }
    // 0 means "not scaled", as in llama.cpp.
    let scale = keys.number("expert_weights_scale")?.filter(|&scale| scale != 0.0).unwrap_or(1.0);
    let count = keys.size_or_zero("expert_group_count", MAX_EXPERTS)?;
    let per_token = keys.size_or_zero("expert_group_used_count", MAX_EXPERTS)?;
    Ok(ExpertWeighting::Sigmoid(SigmoidRouting {
        normalize: keys.flag("expert_weights_norm")?.unwrap_or(normalized),
        scale: common::factor("expert_weights_scale", scale).map_err(|what| source.bad(what))?,
        groups: groups(count, per_token),
    }))
}

/// Routing by sigmoids in a `config.json`.
pub(super) fn hf_sigmoid(hf: &HfConfig<'_>) -> Result<ExpertWeighting> {
    let scale = hf.positive("routed_scaling_factor")?.unwrap_or(1.0);
    let (count, per_token) = (hf.size("n_group", MAX_EXPERTS)?, hf.size("topk_group", MAX_EXPERTS)?);
    Ok(ExpertWeighting::Sigmoid(SigmoidRouting {
        normalize: hf.bool("norm_topk_prob")?.unwrap_or(true),
        scale: common::factor("routed_scaling_factor", scale).map_err(|what| hf.bad(what))?,
        groups: groups(count, per_token),
    }))
}

/// One group is the same as none.
fn groups(count: Option<usize>, per_token: Option<usize>) -> Option<ExpertGroups> {
    let count = count.filter(|&count| count > 1)?;
    Some(ExpertGroups { count, per_token: per_token.unwrap_or(1) })
}

/// The routing in a `config.json`, with experts of width `width`.
pub(super) fn hf(
    hf: &HfConfig<'_>,
    defaults: &HfDefaults,
    weighting: ExpertWeighting,
    width: usize,
) -> Result<Experts> {
    // transformers 5 writes the first key.
    let count = match hf.size("num_local_experts", MAX_EXPERTS)? {
        Some(count) => count,
        None => hf.size("num_experts", MAX_EXPERTS)?.unwrap_or(defaults.count),
    };
    let per_token = hf.size("num_experts_per_tok", MAX_EXPERTS)?.unwrap_or(defaults.per_token);
    check(Experts::plain(count, per_token, width, weighting)).map_err(|what| hf.bad(what))
}

/// The weights of the chosen experts by `norm_topk_prob`, which is false by default.
pub(super) fn normalized(hf: &HfConfig<'_>) -> Result<ExpertWeighting> {
    Ok(match hf.bool("norm_topk_prob")?.unwrap_or(false) {
        true => ExpertWeighting::SoftmaxOfChosen,
        false => ExpertWeighting::Softmax,
    })
}

/// Rejects models in which some layers have experts and others one feed-forward block.
pub(super) fn all_layers(hf: &HfConfig<'_>) -> Result<()> {
    let dense = hf.get("mlp_only_layers").and_then(serde_json::Value::as_array);
    let step = hf.size("decoder_sparse_step", common::limit::LAYERS)?.unwrap_or(1);
    if step > 1 || dense.is_some_and(|layers| !layers.is_empty()) {
        return Err(hf.unsupported(
            "layers without experts among layers with experts are not supported",
            "models with experts in all layers are supported",
        ));
    }
    Ok(())
}

/// Checks the relations between the numbers of experts.
pub(super) fn check(experts: Experts) -> Result<Experts, String> {
    let Experts { count, per_token, .. } = experts;
    if count == 0 || count > MAX_EXPERTS {
        return Err(format!("{count} experts; 1 to {MAX_EXPERTS} are allowed"));
    }
    if per_token == 0 || per_token > count {
        return Err(format!("a token passes {per_token} of {count} experts"));
    }
    if let ExpertWeighting::Sigmoid(SigmoidRouting { groups: Some(groups), .. }) = experts.weighting {
        let ExpertGroups { count: all, per_token: chosen } = groups;
        let fit = count.is_multiple_of(all) && chosen <= all && per_token <= chosen * (count / all);
        if !fit {
            return Err(format!(
                "a token passes {per_token} of {count} experts in {chosen} of {all} groups of one size"
            ));
        }
    }
    Ok(experts)
}
