//! Configurations: scrimp and transformers read the same values from `config.json`, in its old and its new spelling.
//! GGUF metadata gives the same configuration.

mod common;

use std::path::Path;

use common::{Gguf, tiny_llama};
use scrimp_kernels::DType;
use scrimp_llm::{
    checkpoint::Checkpoint,
    config::{Activation, AltUp, ExpertWeighting, LayerInputs, ModelConfig, Rope, RopePairs, SigmoidRouting},
    error::Result,
    families::{self, HfConfig},
    load::Source,
};
use serde_json::{Value, json};

fn read(config: &Value) -> Result<ModelConfig> {
    let hf = HfConfig::new(Path::new("config.json"), config)?;
    families::by_model_type(hf.text("model_type")?.unwrap_or_default())?.hf_config(&hf)
}

fn assert_close(found: &[f32], expected: &Value, what: &str) {
    let expected = expected.as_array().unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let b = b.as_f64().unwrap();
        // transformers computes in f32.
        assert!((f64::from(*a) - b).abs() <= 1e-6 * b.abs(), "{what}[{i}]: {a}, not {b}");
    }
}

#[test]
fn hf_configs_mean_what_transformers_means() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../../testdata/hf_configs/golden.json")).unwrap();
    assert!(cases.len() >= 15);
    for case in &cases {
        let expect = &case["expect"];
        for (spelling, json) in ["old", "new"].iter().zip(case["configs"].as_array().unwrap()) {
            let what = format!("{} ({spelling})", case["name"]);
            let config = read(json).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_close(&config.rope.inv_freq, &expect["inv_freq"], &what);
            assert_close(&[config.rope.magnitude], &json!([expect["magnitude"]]), &what);
            match &config.rope_local {
                Some(local) => assert_close(&local.inv_freq, &expect["local_inv_freq"], &what),
                None => assert!(expect.get("local_inv_freq").is_none(), "{what}"),
            }
            match &config.rope_long {
                Some(long) => {
                    assert_close(&long.rope.inv_freq, &expect["long_inv_freq"], &what);
                    assert_close(&[long.rope.magnitude], &json!([expect["magnitude"]]), &what);
                    assert_eq!(long.original_context as u64, expect["original_context"], "{what}");
                    assert_eq!(config.rope_for(long.original_context), &config.rope);
                    assert_eq!(config.rope_for(long.original_context + 1), &long.rope);
                }
                None => assert!(expect.get("long_inv_freq").is_none(), "{what}"),
            }
            let context = config.context_length as u64;
            let spans = expect["sliding"].as_array().unwrap().iter();
            let spans: Vec<_> =
                spans.map(|w| w.as_u64().filter(|&w| w < context).map(|w| w as usize)).collect();
            assert_eq!(config.sliding_window, spans, "{what}");
            assert_eq!(config.rope_pairs, RopePairs::Halves);
        }
    }
}

#[test]
fn gemma_3_from_hugging_face() {
    // google/gemma-3-4b-it, whose file leaves most numbers to the class's defaults.
    let json = json!({
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    });
    let config = read(&json).unwrap();
    assert_eq!((config.n_heads, config.n_kv_heads, config.head_dim), (8, 4, 256));
    assert_eq!((config.vocab_size, config.context_length), (262_208, 131_072));
    assert_eq!(config.attn_scale, 1.0 / 16.0);
    assert_eq!(config.embedding_scale, 2560f32.sqrt());
    assert_eq!(config.activation, Activation::GeluTanh);
    assert!(config.norm_plus_one);
    assert_eq!(config.rope.inv_freq[0], 0.125);
    assert_eq!(config.rope_local.unwrap().inv_freq[0], 1.0);
    let global: Vec<_> = (0..34).filter(|&i| config.sliding_window[i].is_none()).collect();
    assert_eq!(global, [5, 11, 17, 23, 29]);

    let mut capped = json.clone();
    capped["text_config"]["final_logit_softcapping"] = json!(30.0);
    capped["text_config"]["attn_logit_softcapping"] = json!(50.0);
    let capped = read(&capped).unwrap();
    assert_eq!((capped.final_logit_softcap, capped.attn_logit_softcap), (Some(30.0), Some(50.0)));
}

/// Every key of every golden configuration, replaced by every odd value: a configuration or an error, never a panic,
/// and never sizes out of bounds.
#[test]
fn odd_values_in_config_json() {
    let odd = [
        json!(null),
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(7.5),
        json!(1u64 << 40),
        json!(u64::MAX),
        json!(1e308),
        json!(-1e308),
        json!(1e-308),
        json!("x"),
        json!(""),
        json!(true),
        json!([]),
        json!([1, "x"]),
        json!([0.0, 1e39]),
        json!({}),
        json!({"factor": 0}),
        json!({"rope_type": "yarn", "factor": 1e300}),
        json!({"rope_type": "llama3"}),
        json!({"full_attention": {"rope_theta": -1}}),
        json!({"rope_theta": "x"}),
    ];
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../../testdata/hf_configs/golden.json")).unwrap();
    let tiny = [
        "qwen3moe",
        "mixtral",
        "olmoe",
        "gpt-oss",
        "granitemoe",
        "glm4",
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
    ];
    let with_experts =
        tiny.map(|name| scrimp_testkit::read_json::<Value>(&format!("tiny/{name}/config.json")));
    let mut refused = 0;
    for json in cases.iter().flat_map(|case| case["configs"].as_array().unwrap()).chain(&with_experts) {
        let mut places: Vec<Vec<String>> = Vec::new();
        for (key, value) in json.as_object().unwrap() {
            places.push(vec![key.clone()]);
            for (inner, value) in value.as_object().into_iter().flatten() {
                places.push(vec![key.clone(), inner.clone()]);
                for (innermost, _) in value.as_object().into_iter().flatten() {
                    places.push(vec![key.clone(), inner.clone(), innermost.clone()]);
                }
            }
        }
        for place in places {
            for value in &odd {
                let mut json = json.clone();
                *place.iter().fold(&mut json, |at, key| &mut at[key]) = value.clone();
                match read(&json) {
                    Ok(config) => check(&config),
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(refused > 3000, "only {refused} refused");
}

fn check(config: &ModelConfig) {
    let sound = |rope: &Rope| {
        let heads = (0..config.n_layers).map(|layer| config.heads(layer).head_dim);
        assert!(rope.rotary_dim() <= heads.max().unwrap() && !rope.inv_freq.is_empty());
        assert!(rope.inv_freq.iter().all(|f| f.is_finite()) && rope.magnitude.is_finite());
    };
    sound(&config.rope);
    config.rope_local.iter().for_each(sound);
    config.rope_long.iter().for_each(|long| sound(&long.rope));
    assert_eq!(config.sliding_window.len(), config.n_layers);
    assert!(config.sliding_window.iter().flatten().all(|&w| w > 0));
    let heads = |layer| config.heads(layer);
    assert!((0..config.n_layers).all(|i| heads(i).n_heads.is_multiple_of(heads(i).n_kv_heads)));
    assert!(config.shared_kv.is_none_or(|shared| (1..config.n_layers).contains(&shared.first)));
    assert!(config.attn_scale.is_finite() && config.rms_norm_eps > 0.0);
    if let Some(recurrence) = &config.recurrence {
        assert_eq!(recurrence.layers.len(), config.n_layers);
        assert!(config.attention_layers().count() > 0);
    }
    if let Some(experts) = config.experts {
        assert!(experts.shared.is_none_or(|width| width > 0));
        if let ExpertWeighting::Sigmoid(SigmoidRouting { groups: Some(groups), .. }) = experts.weighting {
            let size = experts.count / groups.count;
            assert!(size * groups.count == experts.count && experts.per_token <= size * groups.per_token);
        }
        assert!((1..=experts.count).contains(&experts.per_token) && experts.count <= 1 << 12);
    }
}

#[test]
fn gemma_4_from_hugging_face() {
    // google/gemma-4-E2B-it: every fifth layer is global, and the last 20 layers have no keys and values.
    let kind = |layer: usize| if layer % 5 == 4 { "full_attention" } else { "sliding_attention" };
    let json = json!({
        "model_type": "gemma4", "tie_word_embeddings": true, "vision_config": {"hidden_size": 768},
        "text_config": {
            "model_type": "gemma4_text", "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35,
            "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512,
            "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 20, "use_double_wide_mlp": true,
            "final_logit_softcapping": 30.0, "sliding_window": 512,
            "layer_types": (0..35).map(kind).collect::<Vec<_>>(),
        },
    });
    let config = read(&json).unwrap();
    assert_eq!((config.head_dim, config.n_kv_heads), (512, 1));
    assert_eq!((config.heads(0).head_dim, config.heads(4).head_dim), (256, 512));
    assert_eq!((config.block_width(14), config.block_width(15)), (6144, 12_288));
    assert_eq!(config.attention_layers().count(), 15);
    assert_eq!((config.kv_layer(13), config.kv_layer(14)), (13, 14));
    assert_eq!((config.kv_layer(15), config.kv_layer(34)), (13, 14), "the last of each kind");
    assert_eq!(config.kv_bytes_per_token(), 4 * (12 * 256 + 3 * 512));
    // A quarter of the pairs (i, i + 256) of a global head rotate.
    assert_eq!((config.rope.rotary_dim(), config.rope.inv_freq[64]), (512, 0.0));
    assert!(config.rope.inv_freq[..64].iter().all(|&f| f > 0.0));
    assert_eq!((config.attn_scale, config.norm_plus_one), (1.0, false));
    assert_eq!(config.per_layer_input, Some(LayerInputs { width: 256, vocab_size: 262_144 }));

    let mut sharing = json.clone();
    sharing["text_config"]["num_kv_shared_layers"] = json!(32);
    let error = read(&sharing).unwrap_err().to_string();
    assert!(
        error.contains("the last 32 layers read keys and values of layers that the model lacks"),
        "{error}"
    );
    let mut heads = json;
    heads["text_config"]["num_key_value_heads"] = json!(3);
    assert!(read(&heads).unwrap_err().to_string().contains("8 query heads cannot share 3 key/value heads"));
}

#[test]
fn gemma_3n_from_hugging_face() {
    // google/gemma-3n-E2B-it.
    let sparsity: Vec<f64> = (0..30).map(|layer| if layer < 10 { 0.95 } else { 0.0 }).collect();
    let json = json!({
        "model_type": "gemma3n",
        "text_config": {
            "model_type": "gemma3n_text", "hidden_size": 2048, "intermediate_size": vec![8192; 30], "num_hidden_layers": 30,
            "num_kv_shared_layers": 10, "activation_sparsity_pattern": sparsity, "rope_theta": 1e6,
            "rope_local_base_freq": 1e4, "laurel_rank": 64, "altup_num_inputs": 4,
        },
    });
    let config = read(&json).unwrap();
    assert_eq!((config.altup, config.laurel_rank), (Some(AltUp { streams: 4, active: 0 }), Some(64)));
    assert_eq!((config.sparse_gates, config.attention_layers().count()), (10, 20));
    assert_eq!((config.kv_layer(20), config.kv_layer(29)), (18, 19), "the last of each kind");
    assert_eq!(config.per_layer_input, Some(LayerInputs { width: 256, vocab_size: 262_144 }));
    assert_eq!(config.final_logit_softcap, Some(30.0));
    let refused = |key: &str, value: Value, words: &str| {
        let mut json = json.clone();
        json["text_config"][key] = value;
        let error = read(&json).unwrap_err().to_string();
        assert!(error.contains(words), "{key}: {error:?} should say {words:?}");
    };
    let mut other = sparsity.clone();
    other[20] = 0.95;
    refused("activation_sparsity_pattern", json!(other), "sparse other than by 0.95 in the first layers");
    refused("activation_sparsity_pattern", json!([0.95]), "has 1 items for 30 layers");
    refused("intermediate_size", json!([1, 2]), "differs between layers");
    refused("altup_active_idx", json!(4), "4 residual streams, of which layers change number 4");
    refused("altup_num_inputs", json!(1), "1 residual streams");
}

#[test]
fn granite_4_hybrid_from_hugging_face() {
    // ibm-granite/granite-4.0-h-tiny.
    let kind = |layer: usize| if [5, 15, 25, 35].contains(&layer) { "attention" } else { "mamba" };
    let json = json!({
        "model_type": "granitemoehybrid", "hidden_size": 1536, "intermediate_size": 512, "num_hidden_layers": 40,
        "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 100_352, "max_position_embeddings": 131_072,
        "num_local_experts": 64, "num_experts_per_tok": 6, "shared_intermediate_size": 1024,
        "mamba_n_heads": 48, "mamba_n_groups": 1, "mamba_d_state": 128, "mamba_d_head": 64, "mamba_d_conv": 4,
        "mamba_expand": 2, "position_embedding_type": "nope", "embedding_multiplier": 12, "logits_scaling": 6,
        "attention_multiplier": 0.0078125, "residual_multiplier": 0.22,
        "layer_types": (0..40).map(kind).collect::<Vec<_>>(),
    });
    let config = read(&json).unwrap();
    let experts = config.experts.unwrap();
    assert_eq!((experts.count, experts.per_token, experts.width, experts.shared), (64, 6, 512, Some(1024)));
    assert_eq!(config.attention_layers().collect::<Vec<_>>(), [5, 15, 25, 35]);
    assert_eq!(config.states(), vec![48 * 64 * 128 + 3 * (3072 + 2 * 128); 36]);
    assert!(config.rope_layers.iter().all(|&rope| !rope));
    let refused = |key: &str, value: Value, words: &str| {
        let mut json = json.clone();
        json[key] = value;
        let error = read(&json).unwrap_err().to_string();
        assert!(error.contains(words), "{key}: {error:?} should say {words:?}");
    };
    refused("mamba_n_groups", json!(5), "48 heads of Mamba-2 cannot share 5 groups");
    refused("mamba_n_heads", json!(36), "does not divide the layer evenly");
    refused("mamba_n_heads", json!(384), "Mamba-2 with heads of 8 elements");
    refused("layer_types", json!(["mamba"]), "has 1 items for 40 layers");
    refused("layer_types", json!(["rwkv"]), "neither mamba nor attention");
    refused("layer_types", json!(vec!["mamba"; 40]), "no layers with attention");
}

#[test]
fn the_guide_lists_every_family() {
    let guide = include_str!("../../../docs/src/guides/models.md");
    for family in families::FAMILIES {
        assert!(guide.contains(&format!("| `{}` |", family.name())), "{}", family.name());
    }
}

#[test]
fn qwen_3_5_from_hugging_face() {
    // Qwen/Qwen3.5-4B.
    let json = json!({
        "model_type": "qwen3_5", "tie_word_embeddings": true, "vision_config": {"depth": 24},
        "text_config": {
            "model_type": "qwen3_5_text", "hidden_size": 2560, "intermediate_size": 9216, "num_hidden_layers": 32,
            "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248_320,
            "max_position_embeddings": 262_144, "full_attention_interval": 4, "mtp_num_hidden_layers": 1,
            "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
            "linear_num_value_heads": 32, "linear_value_head_dim": 128, "attn_output_gate": true,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000_000, "partial_rotary_factor": 0.25,
                                "mrope_interleaved": true, "mrope_section": [11, 11, 10]},
        },
    });
    let config = read(&json).unwrap();
    assert_eq!(config.attention_layers().collect::<Vec<_>>(), [3, 7, 11, 15, 19, 23, 27, 31]);
    assert_eq!(config.rope.rotary_dim(), 64);
    assert!(config.attn_gate && config.norm_plus_one);
    // 24 layers: 32 matrices of 128 x 128, and three tokens of 8,192 channels.
    assert_eq!(config.state_bytes(), 24 * 4 * (32 * 128 * 128 + 3 * 8192));
    assert_eq!(config.kv_bytes_per_token(), 2 * 2 * 8 * 4 * 256);

    let refused = |key: &str, value: Value, words: &str| {
        let mut json = json.clone();
        json["text_config"][key] = value;
        let error = read(&json).unwrap_err().to_string();
        assert!(error.contains(words), "{key}: {error:?} should say {words:?}");
    };
    refused("linear_num_value_heads", json!(24), "cannot share 16 key heads");
    refused("linear_key_head_dim", json!(100), "multiples of 16");
    refused("layer_types", json!(vec!["linear_attention"; 32]), "no layers with attention");
    refused("layer_types", json!(vec!["linear_attention"; 3]), "3 items for 32 layers");
    refused("layer_types", json!(vec!["mamba"; 32]), "neither linear_attention nor full_attention");
}

fn open(gguf: &Gguf) -> Checkpoint {
    Checkpoint::from_source(Source::from_bytes(Path::new("tiny.gguf"), gguf.bytes())).unwrap()
}

/// A GGUF file of `qwen35` with one layer of each kind and one that predicts further tokens.
fn tiny_qwen35() -> Gguf {
    let (f32, h) = (DType::F32, 32);
    let mut gguf = Gguf::new()
        .str("general.architecture", "qwen35")
        .u32("qwen35.block_count", 3)
        .u32("qwen35.nextn_predict_layers", 1)
        .u32("qwen35.full_attention_interval", 2)
        .u32("qwen35.context_length", 64)
        .u32("qwen35.embedding_length", 32)
        .u32("qwen35.feed_forward_length", 32)
        .u32("qwen35.attention.head_count", 2)
        .u32("qwen35.attention.head_count_kv", 1)
        .u32("qwen35.attention.key_length", 16)
        .u32("qwen35.rope.dimension_count", 4)
        .f32("qwen35.attention.layer_norm_rms_epsilon", 1e-6)
        .u32("qwen35.ssm.conv_kernel", 4)
        .u32("qwen35.ssm.state_size", 16)
        .u32("qwen35.ssm.group_count", 1)
        .u32("qwen35.ssm.time_step_rank", 2)
        .u32("qwen35.ssm.inner_size", 32)
        .tensor("token_embd.weight", f32, &[5, h])
        .tensor("output_norm.weight", f32, &[h])
        .tensor("blk.2.nextn.eh_proj.weight", f32, &[h, 2 * h]);
    for (layer, name, shape) in [
        (0, "attn_qkv.weight", &[64, h][..]),
        (0, "attn_gate.weight", &[32, h]),
        (0, "ssm_beta.weight", &[2, h]),
        (0, "ssm_alpha.weight", &[2, h]),
        (0, "ssm_conv1d.weight", &[64, 4]),
        (0, "ssm_dt.bias", &[2]),
        (0, "ssm_a", &[2]),
        (0, "ssm_norm.weight", &[16]),
        (0, "ssm_out.weight", &[h, 32]),
        (1, "attn_q.weight", &[64, h]),
        (1, "attn_k.weight", &[16, h]),
        (1, "attn_v.weight", &[16, h]),
        (1, "attn_output.weight", &[h, 32]),
        (1, "attn_q_norm.weight", &[16]),
        (1, "attn_k_norm.weight", &[16]),
    ] {
        gguf = gguf.tensor(&format!("blk.{layer}.{name}"), f32, shape);
    }
    for layer in 0..2 {
        let name = |stem: &str| format!("blk.{layer}.{stem}.weight");
        gguf = gguf
            .tensor(&name("attn_norm"), f32, &[h])
            .tensor(&name("post_attention_norm"), f32, &[h])
            .tensor(&name("ffn_gate"), f32, &[32, h])
            .tensor(&name("ffn_up"), f32, &[32, h])
            .tensor(&name("ffn_down"), f32, &[h, 32]);
    }
    gguf
}

#[test]
fn qwen_3_5_gguf_leaves_out_layers_that_predict_further_tokens() {
    let checkpoint = open(&tiny_qwen35());
    let config = checkpoint.config();
    assert_eq!(config.n_layers, 2);
    assert_eq!(config.attention_layers().collect::<Vec<_>>(), [1]);
    assert_eq!(config.states(), [2 * 16 * 16 + 3 * 64]);
    assert_eq!(checkpoint.unused().unwrap(), "1 tensors of multi-token prediction are not used");

    let refused = |key: &str, value: u32, words: &str| {
        let mut gguf = tiny_qwen35();
        let at = gguf.pairs.iter().position(|pair| pair[8..].starts_with(key.as_bytes())).unwrap();
        gguf.pairs[at] = common::pair(key, common::U32, &value.to_le_bytes());
        let source = Source::from_bytes(Path::new("tiny.gguf"), gguf.bytes());
        let error = Checkpoint::from_source(source).unwrap_err().to_string();
        assert!(error.contains(words), "{key}: {error:?} should say {words:?}");
    };
    refused("qwen35.ssm.inner_size", 33, "do not divide into 2 heads");
    refused("qwen35.ssm.group_count", 3, "cannot share 3 key heads");
    refused("qwen35.ssm.conv_kernel", 3, "ssm_conv1d.weight has shape");
    refused("qwen35.full_attention_interval", 3, "no layers with attention");
    refused("qwen35.nextn_predict_layers", 3, "must be from 1 to 2");
}

#[test]
fn llama_gguf_pairs_neighbors_and_scales_rope() {
    let plain = open(&tiny_llama());
    assert_eq!(plain.config().rope_pairs, RopePairs::Adjacent);
    assert_eq!(plain.config().name, "tiny");
    let frequencies = &plain.config().rope.inv_freq;

    // Llama 3: a divisor per frequency (the test's bytes, made positive).
    let mut scaled = tiny_llama();
    scaled
        .tensors
        .insert(0, common::Tensor { name: "rope_freqs.weight".into(), shape: vec![32], dtype: DType::F32 });
    let (mut bytes, marks) = scaled.build();
    let data = marks[marks.len() - scaled.tensors.len()];
    for i in 0..32 {
        bytes[data + 4 * i..data + 4 * i + 4].copy_from_slice(&(1.0 + i as f32).to_le_bytes());
    }
    let scaled = Checkpoint::from_source(Source::from_bytes(Path::new("t.gguf"), bytes)).unwrap();
    for (i, (a, b)) in scaled.config().rope.inv_freq.iter().zip(frequencies).enumerate() {
        assert!((a * (1.0 + i as f32) - b).abs() <= 1e-6 * b);
    }

    let linear =
        open(&tiny_llama().str("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0));
    assert_eq!(linear.config().rope.inv_freq[0], 0.25);
    let yarn = open(
        &tiny_llama()
            .str("llama.rope.scaling.type", "yarn")
            .f32("llama.rope.scaling.factor", 4.0)
            .u32("llama.rope.scaling.original_context_length", 32),
    );
    assert_eq!(yarn.config().rope.inv_freq[31], frequencies[31] / 4.0);
    assert!((yarn.config().rope.magnitude - 1.138_629_4).abs() < 1e-6);
    let window = open(&tiny_llama().u32("llama.attention.sliding_window", 64));
    assert_eq!(window.config().sliding_window, [Some(64), Some(64)]);
    let idle = open(&tiny_llama().u32("llama.attention.sliding_window", 128));
    assert_eq!(idle.config().sliding_window, [None, None]);
}

#[test]
fn phi_3_gguf_has_two_ropes_and_fused_matrices() {
    let base = |arch: &str| {
        Gguf::new()
            .str("general.architecture", arch)
            .u32("phi3.block_count", 1)
            .u32("phi3.context_length", 4096)
            .u32("phi3.embedding_length", 64)
            .u32("phi3.feed_forward_length", 96)
            .u32("phi3.attention.head_count", 4)
            .u32("phi3.attention.head_count_kv", 2)
            .u32("phi3.rope.dimension_count", 12)
            .f32("phi3.attention.layer_norm_rms_epsilon", 1e-5)
            .u32("phi3.rope.scaling.original_context_length", 1024)
            .f32("phi3.rope.scaling.attn_factor", 1.25)
            .u32("phi3.attention.sliding_window", 0)
            .tensor("token_embd.weight", DType::F16, &[10, 64])
            .tensor("output.weight", DType::F16, &[10, 64])
            .tensor("output_norm.weight", DType::F32, &[64])
            .tensor("blk.0.attn_norm.weight", DType::F32, &[64])
            .tensor("blk.0.attn_qkv.weight", DType::F16, &[64 + 2 * 32, 64])
            .tensor("blk.0.attn_output.weight", DType::F16, &[64, 64])
            .tensor("blk.0.ffn_norm.weight", DType::F32, &[64])
            .tensor("blk.0.ffn_up.weight", DType::F16, &[2 * 96, 64])
            .tensor("blk.0.ffn_down.weight", DType::F16, &[64, 96])
    };
    let plain = open(&base("phi3"));
    assert_eq!(plain.config().rope.rotary_dim(), 12);
    assert_eq!(plain.config().rope.magnitude, 1.25);
    assert!(plain.config().rope_long.is_none());

    let two = base("phi3").tensor("rope_factors_short.weight", DType::F32, &[6]).tensor(
        "rope_factors_long.weight",
        DType::F32,
        &[6],
    );
    let (mut bytes, marks) = two.build();
    for (from_end, factor) in [(2, 2f32), (1, 8f32)] {
        let data = marks[marks.len() - from_end];
        for i in 0..6 {
            bytes[data + 4 * i..data + 4 * i + 4].copy_from_slice(&factor.to_le_bytes());
        }
    }
    let two = Checkpoint::from_source(Source::from_bytes(Path::new("t.gguf"), bytes)).unwrap();
    assert_eq!(two.config().rope.inv_freq[0], 0.5);
    assert_eq!(two.config().rope_for(1025).inv_freq[0], 0.125);
    assert_eq!(two.config().rope_for(1024).inv_freq[0], 0.5);
}
