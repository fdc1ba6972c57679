//! Mixtures of experts: files that contradict themselves, and the layouts in which files store the experts.

use crate::common::{load, testdata};
use scrimp_kernels::{DType, quant::dequantize::dequantize_row};
use scrimp_llm::{
    checkpoint::Checkpoint,
    model::{
        Model, RunOptions,
        projections::{Projection, StoredMatrix, expert_slice, stored_slice},
    },
};
use scrimp_testkit::copy_tiny_model;
use serde_json::json;
use std::{fs, path::Path};

fn open_error(path: &Path) -> String {
    Checkpoint::open(path).unwrap_err().to_string()
}

#[test]
fn counts_of_experts_that_do_not_match_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let edited = |model: &str, name: &str, key: &str, value: u32| {
        let path = dir.path().join(name);
        copy_tiny_model(model, &path, |config| config[key] = json!(value));
        open_error(&path)
    };
    // Seven experts are stored, each in tensors of its own.
    let more = edited("qwen3moe", "more", "num_local_experts", 8);
    assert!(more.contains("blk.0.ffn_gate_inp.weight has shape [7, 64]"), "{more}");
    let fewer = edited("qwen3moe", "fewer", "num_local_experts", 6);
    assert!(fewer.contains("blk.0.ffn_gate_inp.weight has shape [7, 64]"), "{fewer}");
    let many = edited("qwen3moe", "many", "num_experts_per_tok", 8);
    assert!(many.contains("a token passes 8 of 7 experts"), "{many}");
    let wide = edited("qwen3moe", "wide", "moe_intermediate_size", 48);
    assert!(wide.contains("blk.0.ffn_gate.0.weight has shape [40, 64]"), "{wide}");
    let groups = edited("glm4moe", "groups", "n_group", 4);
    assert!(groups.contains("a token passes 3 of 6 experts in 2 of 4 groups"), "{groups}");
    let few = edited("glm4moe", "few", "topk_group", 1);
    assert!(few.contains("a token passes 3 of 6 experts in 1 of 3 groups"), "{few}");
    // All experts are in one tensor.
    let fused = edited("olmoe", "fused", "intermediate_size", 40);
    assert!(fused.contains("blk.0.ffn_gate_up_exps.weight has shape [8, 64, 64]"), "{fused}");
    let dense = edited("qwen3moe", "dense", "decoder_sparse_step", 2);
    assert!(dense.contains("layers without experts"), "{dense}");
}

/// Sets the first number of a tensor of bf16 to NaN.
fn put_nan(path: &Path, tensor: &str) {
    let mut bytes = fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = 8 + header + json[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 2].copy_from_slice(&0x7FC0_u16.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_router_and_experts_with_nan_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = ["model.layers.1.mlp.gate.weight", "model.layers.2.mlp.experts.5.up_proj.weight"];
    for (tensor, name) in tensors.into_iter().zip(["blk.1.ffn_gate_inp.weight", "blk.2.ffn_up.5.weight"]) {
        let path = dir.path().join(name);
        copy_tiny_model("qwen3moe", &path, |_| ());
        put_nan(&path.join("model.safetensors"), tensor);
        let error = Model::load(Checkpoint::open(&path).unwrap(), &RunOptions::default()).unwrap_err();
        assert!(error.to_string().contains(&format!("tensor {name}: it holds a NaN")), "{error}");
    }
}

#[test]
fn forks_and_truncated_sequences_have_the_bits_of_the_original() {
    for name in [
        "qwen3moe",
        "mixtral",
        "olmoe",
        "gpt-oss",
        "gpt-oss-mxfp4",
        "gemma3n",
        "gemma4",
        "gemma4-moe",
        "glm4moe",
    ] {
        let model = load(&testdata("tiny").join(name), None);
        let tokens: Vec<u32> = (0..60).map(|i| (i * 37 + 11) % 290).collect();
        let mut session = model.session();
        session.forward(&tokens[..40]).unwrap();
        let mut fork = session.fork();
        let want = session.forward(&tokens[40..]).unwrap().to_vec();
        assert_eq!(fork.forward(&tokens[40..]).unwrap(), want, "{name}");
        fork.truncate(40);
        assert_eq!(fork.forward(&tokens[40..]).unwrap(), want, "{name}");
    }
}

/// The numbers of a matrix of an expert, and their type.
fn numbers(
    checkpoint: &Checkpoint,
    layer: usize,
    expert: usize,
    projection: Projection,
) -> (DType, Vec<f32>) {
    let slice = expert_slice(checkpoint, checkpoint.config(), layer, expert, projection);
    let StoredMatrix::Converted { dtype, cols, data } = stored_slice(checkpoint, &slice).unwrap() else {
        panic!("the rows are not converted");
    };
    let row_bytes = dtype.row_bytes(cols).unwrap();
    let mut numbers = vec![0.0; data.len() / row_bytes * cols];
    for (row, numbers) in data.chunks_exact(row_bytes).zip(numbers.chunks_exact_mut(cols)) {
        dequantize_row(dtype, row, numbers);
    }
    (dtype, numbers)
}

/// Every number of the experts of `gpt-oss` is one of MXFP4.
#[test]
fn experts_in_mxfp4_stay_packed_and_have_their_numbers() {
    let [floats, packed] =
        ["gpt-oss", "gpt-oss-mxfp4"].map(|name| Checkpoint::open(&testdata("tiny").join(name)).unwrap());
    let experts = packed.config().experts.unwrap().count;
    for layer in 0..packed.config().n_layers {
        for (expert, projection) in
            (0..experts).flat_map(|e| [Projection::Gate, Projection::Up, Projection::Down].map(|p| (e, p)))
        {
            let (dtype, found) = numbers(&packed, layer, expert, projection);
            assert_eq!(dtype, DType::MXFP4);
            let (_, expected) = numbers(&floats, layer, expert, projection);
            assert_eq!(found, expected, "layer {layer}, expert {expert}, {projection:?}");
        }
    }
}
