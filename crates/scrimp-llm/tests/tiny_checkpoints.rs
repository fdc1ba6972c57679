//! What the loader makes of the tiny models of `testdata/`: configurations that transformers wrote (old and new
//! spelling), and GGUF files that have to mean the same.

use scrimp_llm::checkpoint::{Checkpoint, TensorView};
use scrimp_llm::config::{ModelConfig, RopePairs};

fn open(relative: &str) -> Checkpoint {
    Checkpoint::open(&scrimp_testkit::testdata(relative)).unwrap_or_else(|e| panic!("{relative}: {e}"))
}

fn near(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() <= 1e-6 * y.abs().max(1e-6))
}

/// `base^(-2i / dim)` for every pair, divided by `factors`.
fn frequencies(base: f64, dim: usize, factors: &[f64]) -> Vec<f32> {
    (0..dim / 2)
        .map(|i| (base.powf(-2.0 * i as f64 / dim as f64) / factors[i % factors.len()]) as f32)
        .collect()
}

#[test]
fn windows_are_read_and_unused_ones_ignored() {
    let windows = |name: &str| open(name).config().sliding_window.clone();
    assert_eq!(windows("tiny/mistral"), [Some(11); 2]);
    assert_eq!(windows("tiny/phi3"), [Some(13); 2]);
    assert_eq!(windows("tiny/qwen2"), [None; 2], "use_sliding_window is false");
    assert_eq!(windows("tiny/llama"), [None; 2]);
    let w = Some(12);
    assert_eq!(windows("tiny/gemma3"), [w, w, None, w, w, None, w], "every third layer is global");
    assert_eq!(windows("tiny/gemma3-softcap"), [None, Some(9), Some(9), None], "layer_types");
}

#[test]
fn rotary_frequencies() {
    let llama = open("tiny/llama");
    assert!(near(&llama.config().rope.inv_freq, &frequencies(1e4, 16, &[1.0])));
    assert_eq!(llama.config().rope_pairs, RopePairs::Halves);

    let gemma = open("tiny/gemma3-softcap");
    assert!(near(&gemma.config().rope.inv_freq, &frequencies(1e6, 32, &[8.0])), "global layers are scaled");
    let local = gemma.config().rope_local.as_ref().expect("local layers have their own base");
    assert!(near(&local.inv_freq, &frequencies(1e4, 32, &[1.0])), "local layers are not scaled");

    let phi = open("tiny/phi3");
    assert!(
        near(&phi.config().rope.inv_freq, &frequencies(1e4, 12, &[1.0])),
        "three quarters of 16 are rotated"
    );

    let checkpoint = open("tiny/phi3-longrope");
    let config = checkpoint.config();
    assert!(
        near(&config.rope.inv_freq, &frequencies(1e4, 12, &[1.0, 1.02, 1.05, 1.1, 1.3, 1.6])),
        "short factors"
    );
    let long = config.rope_long.as_ref().expect("long factors");
    assert_eq!(long.original_context, 16);
    assert!(
        near(&long.rope.inv_freq, &frequencies(1e4, 12, &[1.1, 1.4, 2.0, 3.5, 5.0, 8.0])),
        "long factors"
    );
    let magnitude = (1.0 + 8.0_f64.ln() / 16.0_f64.ln()).sqrt() as f32;
    for rope in [&config.rope, &long.rope] {
        assert!((rope.magnitude - magnitude).abs() < 1e-6, "{}", rope.magnitude);
    }
}

#[test]
fn scales_and_caps() {
    let gemma = open("tiny/gemma3");
    let c = gemma.config();
    assert!((c.attn_scale - 20.0_f32.powf(-0.5)).abs() < 1e-7, "query_pre_attn_scalar, not head_dim");
    assert!((c.embedding_scale - 80.0_f32.sqrt()).abs() < 0.02, "sqrt(hidden), possibly rounded to bf16");
    assert!(c.norm_plus_one);
    assert_eq!(c.final_logit_softcap, None);
    assert_eq!(open("tiny/gemma3-softcap").config().final_logit_softcap, Some(8.0));
    let qwen3 = open("tiny/qwen3");
    assert_eq!((qwen3.config().head_dim, qwen3.config().hidden_size), (24, 72), "head_dim is its own number");
}

fn same_config(a: &ModelConfig, b: &ModelConfig, name: &str) {
    let sizes = |c: &ModelConfig| {
        [c.n_layers, c.hidden_size, c.intermediate_size, c.n_heads, c.n_kv_heads, c.head_dim, c.vocab_size]
    };
    assert_eq!(sizes(a), sizes(b), "{name}");
    assert_eq!(a.context_length, b.context_length, "{name}");
    assert_eq!(a.sliding_window, b.sliding_window, "{name}");
    assert!(near(&a.rope.inv_freq, &b.rope.inv_freq), "{name}: {:?} {:?}", a.rope.inv_freq, b.rope.inv_freq);
    assert!((a.rope.magnitude - b.rope.magnitude).abs() < 1e-6, "{name}");
    assert_eq!(a.rope_long.is_some(), b.rope_long.is_some(), "{name}");
    if let (Some(a), Some(b)) = (&a.rope_long, &b.rope_long) {
        assert_eq!(a.original_context, b.original_context, "{name}");
        assert!(near(&a.rope.inv_freq, &b.rope.inv_freq), "{name}: long factors");
        assert!((a.rope.magnitude - b.rope.magnitude).abs() < 1e-6, "{name}: long factors");
    }
    assert!((a.attn_scale - b.attn_scale).abs() < 1e-7, "{name}");
    assert_eq!(a.activation, b.activation, "{name}");
}

/// Rows of one head, from halves `(i, i + d/2)` to neighbors `(2i, 2i + 1)`.
fn permuted(t: &TensorView<'_>, head_dim: usize) -> Vec<u8> {
    let row = t.data.len() / t.shape[0];
    let at = |r: usize| &t.data[r * row..(r + 1) * row];
    let source = |r: usize| {
        let (head, i) = (r / head_dim, r % head_dim);
        head * head_dim + i / 2 + (i % 2) * (head_dim / 2)
    };
    (0..t.shape[0]).flat_map(|r| at(source(r)).to_vec()).collect()
}

#[test]
fn gguf_files_mean_the_same_as_their_directories() {
    for name in ["llama3", "qwen3", "phi3", "phi3-longrope"] {
        let (hf, gguf) = (open(&format!("tiny/{name}")), open(&format!("tiny-gguf/{name}.gguf")));
        same_config(hf.config(), gguf.config(), name);
        let pairs = if name == "llama3" { RopePairs::Adjacent } else { RopePairs::Halves };
        assert_eq!(gguf.config().rope_pairs, pairs, "{name}");
        let mut compared = 0;
        for (tensor, ours) in hf.tensors() {
            let theirs = gguf.tensor(tensor).unwrap();
            assert_eq!(ours.shape, theirs.shape, "{name}: {tensor}");
            if ours.encoding != theirs.encoding {
                continue; // vectors: 16 bits here, F32 in GGUF
            }
            let moved =
                name == "llama3" && (tensor.ends_with("attn_q.weight") || tensor.ends_with("attn_k.weight"));
            let expected = if moved { permuted(&ours, hf.config().head_dim) } else { ours.data.to_vec() };
            assert!(expected == theirs.data, "{name}: {tensor} differs");
            compared += 1;
        }
        assert!(compared > 5, "{name}: {compared} tensors compared");
    }
}

#[test]
fn every_stored_type_is_read() {
    let [mixed, types] = ["mixed", "types"].map(|name| open(&format!("tiny-gguf/llama-{name}.gguf")));
    let types: std::collections::HashSet<_> =
        mixed.tensors().chain(types.tensors()).filter_map(|(_, t)| t.encoding.rows()).collect();
    // The package that writes the files does not have Q2_0.
    let in_gguf = scrimp_kernels::DType::ALL.len() - scrimp_kernels::DType::CODEBOOKS.len();
    assert_eq!(types.len() + 1, in_gguf, "{types:?}");
    assert_eq!(mixed.config().rope_pairs, RopePairs::Adjacent);
}

/// A safetensors file with other names of its tensors.
fn renamed(file: &[u8], name: impl Fn(&str) -> String) -> Vec<u8> {
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).unwrap();
    let header: serde_json::Map<_, _> = header.into_iter().map(|(key, value)| (name(&key), value)).collect();
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

#[test]
fn tensors_may_lack_the_prefix_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["qwen2", "gemma3", "phi3"] {
        let from = scrimp_testkit::testdata(&format!("tiny/{name}"));
        let to = dir.path().join(name);
        std::fs::create_dir(&to).unwrap();
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
        let file = std::fs::read(from.join("model.safetensors")).unwrap();
        let bare = |key: &str| key.strip_prefix("model.").unwrap_or(key).to_owned();
        std::fs::write(to.join("model.safetensors"), renamed(&file, bare)).unwrap();
        let (with, without) = (open(&format!("tiny/{name}")), Checkpoint::open(&to).unwrap());
        let names = |checkpoint: &Checkpoint| {
            checkpoint.tensors().map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&without), names(&with), "{name}");
        for ((_, a), (_, b)) in without.tensors().zip(with.tensors()) {
            assert_eq!((a.shape, a.data), (b.shape, b.data));
        }
    }
}
