//! Every family against transformers: tiny random models of `testdata/tiny` and `testdata/tiny-gguf`.
//!
//! The prompts are longer than every sliding window, so masks, both RoPE bases, scaled frequencies and the growth of
//! the cache all show in the logits. Each model runs as one prefill, as uneven chunks and as single steps, at the
//! scalar level (the specification) and in the machine's own.

use crate::common::{Expected, argmax, difference, load, read_json, testdata};
use scrimp_llm::model::Model;
use std::path::Path;

/// Largest allowed difference of a logit where all arithmetic is f32.
const EXACT: f32 = 1e-3;

/// Feeds the prompt in pieces of the given sizes (repeated) and returns the largest difference of any known logit.
fn worst(model: &Model, expected: &Expected, pieces: &[usize]) -> f32 {
    let mut session = model.session();
    let (mut at, mut worst) = (0, 0.0_f32);
    for &size in pieces.iter().cycle() {
        let end = (at + size).min(expected.ids.len());
        session
            .forward_each(&expected.ids[at..end], &mut |i, logits| {
                worst = worst.max(difference(expected, at + i, logits));
            })
            .unwrap();
        at = end;
        if at == expected.ids.len() {
            assert_eq!(session.len(), at);
            return worst;
        }
    }
    unreachable!("pieces are not empty")
}

/// The greedy continuation of the prompt.
fn greedy(model: &Model, expected: &Expected) -> Vec<u32> {
    let mut session = model.session();
    let mut next = argmax(session.forward(&expected.ids).unwrap());
    let mut ids = vec![next];
    while ids.len() < expected.greedy_ids.len() {
        next = argmax(session.forward(&[next]).unwrap());
        ids.push(next);
    }
    ids
}

/// `bound` is on the logits' difference, in logits.
fn check(model_path: &Path, expected_path: &Path, bound: f32) {
    // transformers takes the long factors for all of a prompt that is long at once: only that is comparable.
    let at_once = model_path.to_string_lossy().contains("longrope");
    let expected: Expected = read_json(expected_path);
    for level in [Some("scalar"), None] {
        let model = load(model_path, level);
        let name = format!("{} ({})", model_path.display(), level.unwrap_or("best level"));
        for pieces in [&[1000][..], &[7, 1, 16, 3], &[1]].into_iter().take(if at_once { 1 } else { 3 }) {
            let error = worst(&model, &expected, pieces);
            assert!(
                error <= bound,
                "{name}: pieces of {pieces:?}: logits differ by {error}, allowed {bound}"
            );
        }
        // A continuation is comparable only where the allowed error cannot turn a choice around.
        if expected.greedy_min_gap > 2.0 * bound {
            assert_eq!(greedy(&model, &expected), expected.greedy_ids, "{name}: greedy continuation");
        }
    }
}

/// A Hugging Face directory of testdata/tiny.
fn check_directory(name: &str, bound: f32) {
    let folder = testdata("tiny").join(name);
    check(&folder, &folder.join("expected.json"), bound);
}

#[test]
fn llama_sharded_f32() {
    check_directory("llama", EXACT);
}

#[test]
fn llama3_rope_scaling_tied_f16() {
    check_directory("llama3", EXACT);
}

#[test]
fn mistral_sliding_window_f32() {
    check_directory("mistral", EXACT);
}

#[test]
fn qwen2_biases_and_unused_window_f32() {
    check_directory("qwen2", EXACT);
}

#[test]
fn qwen3_head_norms_bf16() {
    check_directory("qwen3", EXACT);
}

#[test]
fn gemma3_global_and_local_layers_bf16() {
    check_directory("gemma3", EXACT);
}

#[test]
fn gemma3_soft_cap_and_linear_scaling_f16() {
    check_directory("gemma3-softcap", EXACT);
}

#[test]
fn phi3_fused_partial_rotary_window_f16() {
    check_directory("phi3", EXACT);
}

#[test]
fn phi3_longrope_bf16() {
    check_directory("phi3-longrope", EXACT);
}

#[test]
fn gemma2_soft_caps_and_alternating_windows_bf16() {
    check_directory("gemma2", EXACT);
}

#[test]
fn smollm3_layers_without_rope_bf16() {
    check_directory("smollm3", EXACT);
}

#[test]
fn granite_factors_f16() {
    check_directory("granite", EXACT);
}

#[test]
fn granite_hybrid_without_mamba_fused_gate_bf16() {
    check_directory("granitehybrid", EXACT);
}

#[test]
fn olmo2_norms_after_blocks_bf16() {
    check_directory("olmo2", EXACT);
}

#[test]
fn olmo3_windows_and_yarn_bf16() {
    check_directory("olmo3", EXACT);
}

#[test]
fn ministral3_attention_temperature_bf16() {
    check_directory("ministral3", EXACT);
}

#[test]
fn qwen3moe_one_tensor_per_expert_bf16() {
    check_directory("qwen3moe", EXACT);
}

#[test]
fn mixtral_experts_f16() {
    check_directory("mixtral", EXACT);
}

#[test]
fn olmoe_fused_experts_without_normalization_bf16() {
    check_directory("olmoe", EXACT);
}

#[test]
fn granitemoe_factors_and_fused_experts_bf16() {
    check_directory("granitemoe", EXACT);
}

#[test]
fn glm4_norms_around_blocks_and_adjacent_rope_bf16() {
    check_directory("glm4", EXACT);
}

#[test]
fn gpt_oss_sinks_windows_and_biases_of_experts_bf16() {
    check_directory("gpt-oss", EXACT);
}

/// Activations of 8 bits change which experts random routers choose, so single logits may differ by more.
#[test]
fn gpt_oss_in_mxfp4() {
    let folder = testdata("tiny/gpt-oss-mxfp4");
    let expected: Expected = read_json(&folder.join("expected.json"));
    let model = load(&folder, None);
    let mut session = model.session();
    let logits = session.forward(&expected.ids).unwrap();
    let last = expected.last_logits.last().unwrap();
    let squares = logits.iter().zip(last).map(|(x, y)| (x - y).powi(2));
    let error = (squares.sum::<f32>() / logits.len() as f32).sqrt();
    assert!(error <= 0.15 * expected.logits_std, "{error}, of {}", expected.logits_std);
}

#[test]
fn qwen35_gated_delta_rule_and_gated_attention_bf16() {
    check_directory("qwen35", EXACT);
}

#[test]
fn qwen35moe_shared_expert_bf16() {
    check_directory("qwen35moe", EXACT);
}

#[test]
fn qwen3next_interleaved_projections_bf16() {
    check_directory("qwen3next", EXACT);
}

#[test]
fn lfm2_short_convolutions_bf16() {
    check_directory("lfm2", EXACT);
}

#[test]
fn gemma4_layer_inputs_shared_kv_and_two_head_sizes_bf16() {
    check_directory("gemma4", EXACT);
}

#[test]
fn gemma4_experts_beside_a_block_and_values_from_keys_bf16() {
    check_directory("gemma4-moe", EXACT);
}

#[test]
fn lfm2moe_sigmoids_biases_and_a_dense_layer_bf16() {
    check_directory("lfm2moe", EXACT);
}

#[test]
fn glm4moe_groups_of_experts_and_a_shared_one_bf16() {
    check_directory("glm4moe", EXACT);
}

#[test]
fn granite_hybrid_mamba2_and_experts_beside_a_block_bf16() {
    check_directory("granitehybrid-moe", EXACT);
}

#[test]
fn gemma3n_streams_learned_residuals_and_sparse_gates_bf16() {
    check_directory("gemma3n", EXACT);
}

#[test]
fn gguf_holds_the_same_models() {
    for name in [
        "llama3",
        "qwen3",
        "phi3",
        "phi3-longrope",
        "qwen3moe",
        "gpt-oss",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "lfm2",
        "gemma4",
        "gemma4-moe",
        "lfm2moe",
        "glm4moe",
        "granitehybrid-moe",
        "gemma3n",
    ] {
        let gguf = testdata("tiny-gguf").join(format!("{name}.gguf"));
        check(&gguf, &testdata("tiny").join(name).join("expected.json"), EXACT);
    }
}

/// Quantized matrices meet activations of 8 bits: an error of several percent of the logits' spread belongs to that.
#[test]
fn gguf_with_every_stored_type() {
    for name in ["mixed", "types"] {
        let expected = testdata(&format!("tiny-gguf/llama-{name}.json"));
        let std = read_json::<Expected>(&expected).logits_std;
        check(&testdata(&format!("tiny-gguf/llama-{name}.gguf")), &expected, 0.15 * std);
    }
}

#[test]
fn a_reset_session_starts_afresh() {
    let folder = testdata("tiny/mistral");
    let expected: Expected = read_json(&folder.join("expected.json"));
    let model = load(&folder, None);
    let mut session = model.session();
    let first = session.forward(&expected.ids).unwrap().to_vec();
    session.reset();
    assert!(session.is_empty());
    assert_eq!(session.forward(&expected.ids).unwrap(), first, "after reset");
    session.truncate(20);
    assert_eq!(session.len(), 20);
    let again = session.forward(&expected.ids[20..]).unwrap();
    let error = again.iter().zip(&first).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error <= EXACT, "after truncate: {error}");
}

#[test]
fn unusable_tokens_are_errors() {
    let model = load(&testdata("tiny/llama"), None);
    let mut session = model.session();
    assert!(session.forward(&[]).is_err(), "no tokens");
    let outside = u32::try_from(model.vocab_size()).unwrap();
    assert!(session.forward(&[outside]).is_err(), "an id outside the vocabulary");
    assert!(session.forward(&[u32::MAX]).is_err(), "an id far outside the vocabulary");
    assert!(session.is_empty(), "a refused request leaves no tokens behind");
    let too_long = vec![5; model.context_length() + 1];
    assert!(session.forward(&too_long).is_err(), "longer than the context");
    assert!(session.forward(&[5]).is_ok(), "usable after refusals");
}
