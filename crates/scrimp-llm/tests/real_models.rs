//! Real files, when `SCRIMP_TEST_MODELS` names a directory that has them: configurations as llama.cpp prints them.

use scrimp_llm::{checkpoint::Checkpoint, config::RopePairs};
use scrimp_testkit::real_model;

fn model(name: &str) -> Option<Checkpoint> {
    real_model(name).map(|path| Checkpoint::open(&path).unwrap())
}

/// (layers, hidden, feed-forward, heads, key/value heads, head, vocabulary, context)
fn sizes(checkpoint: &Checkpoint) -> [usize; 8] {
    let c = checkpoint.config();
    [
        c.n_layers,
        c.hidden_size,
        c.intermediate_size,
        c.n_heads,
        c.n_kv_heads,
        c.head_dim,
        c.vocab_size,
        c.context_length,
    ]
}

#[test]
fn smollm2() {
    let Some(checkpoint) = model("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    assert_eq!(sizes(&checkpoint), [30, 576, 1536, 9, 3, 64, 49_152, 8192]);
    assert_eq!(checkpoint.config().rope_pairs, RopePairs::Adjacent);
    assert_eq!(checkpoint.config().rope.inv_freq[31], 1e5f32.powf(-62.0 / 64.0));
    assert!(checkpoint.try_tensor("output.weight").is_none());
    assert_eq!(checkpoint.tensors().len(), 272);
    let q4_1 = checkpoint.tensors().filter(|(_, view)| view.encoding.name() == "Q4_1").count();
    assert_eq!(q4_1, 210);
    assert_eq!(checkpoint.file_bytes(), 98_362_432);
    // Released bytes are read again.
    let before = checkpoint.tensor("token_embd.weight").unwrap().data.to_vec();
    checkpoint.release("token_embd.weight");
    assert!(checkpoint.tensor("token_embd.weight").unwrap().data == before);
}

#[test]
fn gemma_3() {
    let Some(checkpoint) = model("gemma-3-270m-Q4_K_M.gguf") else { return };
    assert_eq!(sizes(&checkpoint), [18, 640, 2048, 4, 1, 256, 262_144, 32_768]);
    let config = checkpoint.config();
    assert_eq!(config.rope.inv_freq[64], 1e-3);
    assert_eq!(config.rope_local.as_ref().unwrap().inv_freq[64], 1e-2);
    let global: Vec<_> = (0..18).filter(|&i| config.sliding_window[i].is_none()).collect();
    assert_eq!(global, [5, 11, 17]);
    assert_eq!(config.sliding_window[0], Some(512));
    assert_eq!((config.attn_scale, config.embedding_scale), (1.0 / 16.0, 640f32.sqrt()));
    assert!(!config.norm_plus_one);
}

#[test]
fn qwen() {
    if let Some(checkpoint) = model("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf") {
        assert_eq!(sizes(&checkpoint), [24, 896, 4864, 14, 2, 64, 151_936, 32_768]);
        assert_eq!(checkpoint.config().rope_pairs, RopePairs::Halves);
        assert!(checkpoint.try_tensor("output.weight").is_some());
        assert_eq!(checkpoint.tensor("blk.23.attn_k.bias").unwrap().shape, [128]);
    }
    if let Some(checkpoint) = model("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf") {
        assert_eq!(sizes(&checkpoint), [28, 1536, 8960, 12, 2, 128, 151_936, 32_768]);
    }
}
