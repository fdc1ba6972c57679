//! Hugging Face directories and safetensors files: the good, the damaged and the hostile.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{bf16_safetensors, peak_address_space, safetensors};
use proptest::prelude::*;
use scrimp_base::SplitMix64;
use scrimp_kernels::DType;
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::Result,
    load::{SafetensorsFile, Source},
};
use serde_json::{Value, json};

fn parse(bytes: &[u8]) -> Result<SafetensorsFile> {
    SafetensorsFile::from_source(Source::from_bytes(Path::new("attack.safetensors"), bytes.to_vec()))
}

fn refused(bytes: &[u8], words: &str) {
    let error = parse(bytes).expect_err(words).to_string();
    assert!(error.contains(words), "{error:?} should say {words:?}");
}

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"n":{"dtype":"I64","shape":[],"data_offsets":[32,40]}}"#;

#[test]
fn headers() {
    let file = parse(&safetensors(GOOD, 40)).unwrap();
    assert_eq!(file.metadata()["format"], "pt");
    assert_eq!(file.tensors()[0].shape, [2, 3]);
    assert_eq!(file.tensors()[2].shape, [0usize; 0]);
    assert_eq!(file.tensors()[1].range.len(), 8);

    let one = |info: &str| safetensors(&format!(r#"{{"a":{info}}}"#), 32);
    parse(&one(r#"{"dtype":"F32","shape":[8],"data_offsets":[0,32]}"#)).unwrap();
    refused(&one(r#"{"dtype":"F32","shape":[9],"data_offsets":[0,32]}"#), "does not fit");
    refused(&one(r#"{"dtype":"F32","shape":[9],"data_offsets":[0,36]}"#), "does not fit");
    refused(&one(r#"{"dtype":"F32","shape":[8],"data_offsets":[32,0]}"#), "does not fit");
    refused(&one(r#"{"dtype":"F32","shape":[7],"data_offsets":[4,32]}"#), "does not begin");
    refused(&one(r#"{"dtype":"F32","shape":[7],"data_offsets":[0,28]}"#), "after the last");
    refused(&one(r#"{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#), "shape");
    refused(&one(r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,8],"data_offsets":[0,32]}"#), "shape");
    refused(&one(r#"{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}"#), "does not fit");
    refused(
        &one(r#"{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4611686018427387904]}"#),
        "fit",
    );
    refused(&one(r#"{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,32]}"#), "damaged");
    refused(&one(r#"{"dtype":"F32","shape":[-8],"data_offsets":[0,32]}"#), "damaged");
    refused(&one(r#"{"dtype":"Q9","shape":[8],"data_offsets":[0,32]}"#), "Q9");
    refused(&one(r#"{"dtype":"F32","shape":[8],"data_offsets":[0,32,64]}"#), "damaged");
    refused(&one(r#"{"dtype":"F32","shape":[8]}"#), "data_offsets");
    refused(&one(r#"{"dtype":"F32","dtype":"F32","shape":[8],"data_offsets":[0,32]}"#), "duplicate");
    refused(&one("[]"), "damaged");
    refused(&safetensors("[]", 0), "damaged");
    refused(&safetensors(&"[".repeat(100_000), 0), "damaged");
    refused(&safetensors(&r#"{"a":"#.repeat(100_000), 0), "damaged");
    refused(&safetensors("{} x", 0), "damaged");
    refused(&safetensors(r#"{"__metadata__":{"a":1}}"#, 0), "damaged");
    let half = r#"{"dtype":"F32","shape":[4],"data_offsets":[0,16]}"#;
    let rest = r#"{"dtype":"F32","shape":[4],"data_offsets":[16,32]}"#;
    refused(&safetensors(&format!(r#"{{"a":{half},"b":{half}}}"#), 32), "does not begin");
    refused(&safetensors(&format!(r#"{{"a":{half},"a":{rest}}}"#), 32), "twice");
}

#[test]
fn truncations_and_flips() {
    let bytes = safetensors(GOOD, 40);
    for end in 0..bytes.len() {
        assert!(parse(&bytes[..end]).is_err(), "cut to {end}");
    }
    let mut rng = SplitMix64::new(12);
    let mut refused = 0;
    for _ in 0..4000 {
        let mut bad = bytes.clone();
        for _ in 0..=rng.below(3) {
            bad[rng.below((8 + GOOD.len()) as u64) as usize] ^= 1 << rng.below(8);
        }
        refused += usize::from(parse(&bad).is_err());
    }
    assert!(refused > 2000, "only {refused} of 4000 flips were noticed");
}

#[test]
fn absurd_claims_take_no_memory() {
    let before = peak_address_space();
    for claim in [9, 100_000_001, 1 << 32, 1 << 60, u64::MAX] {
        let mut bytes = safetensors(GOOD, 40);
        bytes.truncate(16);
        bytes[..8].copy_from_slice(&u64::to_le_bytes(claim));
        refused(&bytes, "claims a header");
    }
    assert!(peak_address_space() - before < 256 << 20);
}

proptest! {
    #[test]
    fn random_bytes(header in prop::collection::vec(any::<u8>(), 0..256)) {
        prop_assert!(parse(&header).is_err());
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(&header);
        let _ = parse(&bytes);
    }

    #[test]
    fn random_tensors(a in any::<[u64; 5]>(), small in any::<[u8; 5]>(), data in 0usize..64) {
        for v in [a, small.map(u64::from)] {
            let info = json!({"dtype": "U8", "shape": [v[0], v[1], v[2]], "data_offsets": [v[3], v[4]]});
            let _ = parse(&safetensors(&json!({"t": info}).to_string(), data));
        }
    }
}

fn config(kind: &str) -> Value {
    json!({
        "model_type": kind, "vocab_size": 10, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": kind.starts_with("gemma"),
    })
}

/// Names and shapes as transformers writes them.
fn tensors(kind: &str) -> Vec<(String, Vec<usize>)> {
    let mut out = vec![
        ("model.embed_tokens.weight".to_owned(), vec![10, 16]),
        ("model.norm.weight".to_owned(), vec![16]),
        ("model.rotary_emb.inv_freq".to_owned(), vec![2]),
    ];
    if !kind.starts_with("gemma") {
        out.push(("lm_head.weight".to_owned(), vec![10, 16]));
    }
    for layer in 0..2 {
        let mut push = |name: &str, shape: &[usize]| {
            out.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        push("input_layernorm.weight", &[16]);
        push("post_attention_layernorm.weight", &[16]);
        push("self_attn.o_proj.weight", &[16, 16]);
        push("mlp.down_proj.weight", &[16, 24]);
        if kind == "phi3" {
            push("self_attn.qkv_proj.weight", &[32, 16]);
            push("mlp.gate_up_proj.weight", &[48, 16]);
            continue;
        }
        push("self_attn.q_proj.weight", &[16, 16]);
        push("self_attn.k_proj.weight", &[8, 16]);
        push("self_attn.v_proj.weight", &[8, 16]);
        push("mlp.gate_proj.weight", &[24, 16]);
        push("mlp.up_proj.weight", &[24, 16]);
        if kind == "qwen2" {
            push("self_attn.q_proj.bias", &[16]);
            push("self_attn.k_proj.bias", &[8]);
            push("self_attn.v_proj.bias", &[8]);
        }
        if kind == "qwen3" || kind == "gemma3_text" {
            push("self_attn.q_norm.weight", &[4]);
            push("self_attn.k_norm.weight", &[4]);
        }
        if kind == "gemma3_text" {
            push("pre_feedforward_layernorm.weight", &[16]);
            push("post_feedforward_layernorm.weight", &[16]);
        }
    }
    out
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new(config: &Value) -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        dir.file("config.json", config.to_string().as_bytes());
        dir
    }
    fn model(kind: &str) -> Self {
        let dir = Self::new(&config(kind));
        dir.file("model.safetensors", &bf16_safetensors(&tensors(kind)));
        dir
    }
    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
    fn file(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path().join(name), bytes).unwrap();
    }
    fn open(&self) -> Result<Checkpoint> {
        Checkpoint::open(&self.path())
    }
    fn refused(&self, words: &str) {
        let error = self.open().expect_err(words).to_string();
        assert!(error.contains(words), "{error:?} should say {words:?}");
    }
}

#[test]
fn every_family_opens() {
    for kind in ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3"] {
        let dir = Dir::model(kind);
        let checkpoint = dir.open().unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert_eq!(checkpoint.hf_dir(), Some(dir.path().as_path()));
        assert!(checkpoint.gguf_metadata().is_none());
        assert_eq!(checkpoint.config().name, dir.path().file_name().unwrap().to_str().unwrap());
        assert!(checkpoint.tensor_names().all(|name| !name.contains("inv_freq")));
        // Everything but the rotary frequencies is there, under GGUF's names.
        assert_eq!(checkpoint.tensors().len(), tensors(kind).len() - 1, "{kind}");
        let view = checkpoint.tensor("blk.1.ffn_down.weight").unwrap();
        assert_eq!(
            (view.encoding.rows(), view.shape, view.data.len()),
            (Some(DType::BF16), vec![16, 24], 16 * 24 * 2)
        );
        assert_eq!(checkpoint.try_tensor("output.weight").is_some(), kind != "gemma3_text");
    }
    let gemma = Dir::model("gemma3_text").open().unwrap();
    for norm in ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"] {
        gemma.tensor(&format!("blk.0.{norm}.weight")).unwrap();
    }
}

#[test]
fn tied_models_have_no_output_matrix() {
    let mut json = config("llama");
    json["tie_word_embeddings"] = json!(true);
    let dir = Dir::new(&json);
    dir.file("model.safetensors", &bf16_safetensors(&tensors("llama")));
    assert!(dir.open().unwrap().try_tensor("output.weight").is_none());

    let dir = Dir::new(&config("llama"));
    let mut without = tensors("llama");
    without.retain(|(name, _)| name != "lm_head.weight");
    dir.file("model.safetensors", &bf16_safetensors(&without));
    dir.refused("lm_head.weight");
}

#[test]
fn multimodal_gemma_keeps_its_language_model() {
    for prefix in ["language_model.model.", "model.language_model."] {
        let mut text = config("gemma3_text");
        text["tie_word_embeddings"] = Value::Null;
        let dir = Dir::new(&json!({"model_type": "gemma3", "text_config": text, "vision_config": {}}));
        let mut all: Vec<_> = tensors("gemma3_text")
            .into_iter()
            .map(|(name, shape)| (name.replacen("model.", prefix, 1), shape))
            .collect();
        all.push(("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight".to_owned(), vec![8, 8]));
        dir.file("model.safetensors", &bf16_safetensors(&all));
        assert_eq!(dir.open().unwrap().tensors().len(), tensors("gemma3_text").len() - 1);
    }
}

#[test]
fn qwen_3_5_keeps_its_language_model() {
    // The tensors of the tiny model as a multimodal checkpoint has them, with a vision tower and multi-token prediction.
    let text: Value = scrimp_testkit::read_json("tiny/qwen35/config.json");
    let tiny = fs::read(scrimp_testkit::tiny_model("qwen35").join("model.safetensors")).unwrap();
    let mut all: Vec<_> = parse(&tiny)
        .unwrap()
        .tensors()
        .iter()
        .map(|tensor| (tensor.name.replacen("model.", "model.language_model.", 1), tensor.shape.clone()))
        .collect();
    let n = all.len();
    all.push(("model.visual.blocks.0.attn.qkv.weight".to_owned(), vec![8, 8]));
    all.push(("model.visual.patch_embed.proj.bias".to_owned(), vec![8]));
    all.push(("mtp.layers.0.self_attn.q_proj.weight".to_owned(), vec![8, 8]));
    let dir = Dir::new(&json!({
        "model_type": "qwen3_5", "text_config": text, "vision_config": {}, "tie_word_embeddings": true,
    }));
    dir.file("model.safetensors", &bf16_safetensors(&all));
    let checkpoint = dir.open().unwrap();
    assert_eq!(checkpoint.tensors().len(), n);
    let unused = "2 tensors of vision or audio towers and 1 tensors of multi-token prediction are not used";
    assert_eq!(checkpoint.unused().as_deref(), Some(unused));

    let without = |name: &str, words: &str| {
        let rest: Vec<_> = all.iter().filter(|(tensor, _)| !tensor.ends_with(name)).cloned().collect();
        dir.file("model.safetensors", &bf16_safetensors(&rest));
        dir.refused(words);
    };
    without("layers.0.linear_attn.A_log", "blk.0.ssm_a");
    without("layers.1.linear_attn.in_proj_qkv.weight", "blk.1.attn_qkv.weight is missing");
    without("layers.1.linear_attn.in_proj_b.weight", "blk.1.ssm_beta.weight is missing");
    without("layers.2.self_attn.q_norm.weight", "blk.2.attn_q_norm.weight is missing");
}

#[test]
fn shards() {
    let all = tensors("qwen3");
    let (first, second) = all.split_at(all.len() / 2);
    let index = |second_file: &str| {
        let mut map = serde_json::Map::new();
        first.iter().for_each(|(name, _)| drop(map.insert(name.clone(), json!("a.safetensors"))));
        second.iter().for_each(|(name, _)| drop(map.insert(name.clone(), json!(second_file))));
        json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string()
    };
    let dir = Dir::new(&config("qwen3"));
    dir.file("a.safetensors", &bf16_safetensors(first));
    dir.file("b.safetensors", &bf16_safetensors(second));
    dir.refused("no model.safetensors.index.json");
    dir.file("model.safetensors.index.json", index("b.safetensors").as_bytes());
    let checkpoint = dir.open().unwrap();
    assert_eq!(checkpoint.tensors().len(), all.len() - 1);
    let sizes = ["a.safetensors", "b.safetensors"].map(|f| fs::metadata(dir.path().join(f)).unwrap().len());
    assert_eq!(checkpoint.file_bytes(), sizes.iter().sum::<u64>());

    dir.file("model.safetensors.index.json", index("c.safetensors").as_bytes());
    dir.refused("c.safetensors");
    dir.file("model.safetensors.index.json", index("../b.safetensors").as_bytes());
    dir.refused("no file name");
    dir.file("model.safetensors.index.json", index("/etc/passwd").as_bytes());
    dir.refused("no file name");
    dir.file("model.safetensors.index.json", index("..").as_bytes());
    dir.refused("no file name");
    dir.file("model.safetensors.index.json", index("a.safetensors").as_bytes());
    dir.refused("where it should be");
    dir.file("model.safetensors.index.json", b"{\"weight_map\": 3}");
    dir.refused("damaged JSON");
    dir.file("b.safetensors", &bf16_safetensors(&all));
    dir.file("model.safetensors.index.json", index("b.safetensors").as_bytes());
    dir.refused("in another file too");
}

#[test]
fn wrong_directories_are_explained() {
    let dir = Dir::model("llama");
    fs::remove_file(dir.path().join("config.json")).unwrap();
    dir.refused("no config.json");
    dir.file("model-Q4_0.gguf", b"GGUF");
    assert!(dir.open().unwrap_err().hint().unwrap().as_str().contains("model-Q4_0.gguf"));

    let dir = Dir::new(&config("llama"));
    dir.refused("no model.safetensors");
    dir.file("pytorch_model.bin", b"PK\x03\x04");
    dir.refused("pickle");
    let bin = Checkpoint::open(&dir.path().join("pytorch_model.bin")).unwrap_err();
    assert!(bin.to_string().contains("pickle") && bin.hint().unwrap().as_str().contains("safetensors"));
    let missing = Checkpoint::open(&dir.path().join("none.gguf")).unwrap_err();
    assert!(missing.to_string().contains("none.gguf"));

    for (text, words) in [
        ("", "damaged JSON"),
        ("[]", "JSON object"),
        ("{}", "model_type"),
        (r#"{"model_type": 7}"#, "model_type"),
        (r#"{"model_type": "mamba"}"#, "mamba"),
        (r#"{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}"#, "quantization gptq"),
    ] {
        let dir = Dir::model("llama");
        dir.file("config.json", text.as_bytes());
        dir.refused(words);
    }
    let dir = Dir::model("llama");
    dir.file("config.json", &vec![b' '; (4 << 20) + 1]);
    dir.refused("larger than");
}

#[test]
fn wrong_tensors_are_named() {
    for (i, (name, shape)) in tensors("gemma3_text").iter().enumerate() {
        if name.contains("inv_freq") {
            continue;
        }
        let dir = Dir::new(&config("gemma3_text"));
        let mut all = tensors("gemma3_text");
        all[i].1[0] += 2;
        dir.file("model.safetensors", &bf16_safetensors(&all));
        dir.refused(&format!("but the configuration says {shape:?}"));
        all.remove(i);
        dir.file("model.safetensors", &bf16_safetensors(&all));
        dir.refused("is missing");
    }
    let dir = Dir::new(&config("llama"));
    let header = bf16_safetensors(&tensors("llama"));
    let text = String::from_utf8_lossy(&header).replacen("BF16", "I16", 1).into_bytes();
    // One letter less: the length in front changes too.
    let length = u64::from_le_bytes(*header.first_chunk().unwrap()) - 1;
    let mut bytes = text;
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    dir.file("model.safetensors", &bytes);
    dir.refused("is of type I16");
    let mut all = tensors("llama");
    all.push(("model.layers.0.mlp.up_proj.bias".to_owned(), vec![24]));
    dir.file("model.safetensors", &bf16_safetensors(&all));
    dir.refused("ffn_up.bias is not supported");
}
