//! Hugging Face directories with FP8 matrices: the logits of the same numbers in bf16, and the errors of damaged files.

use crate::common::load;
use half::bf16;
use scrimp_llm::{
    checkpoint::Checkpoint,
    model::{Model, RunOptions},
};
use scrimp_testkit::copy_tiny_model;
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

/// A tensor of a safetensors file.
#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// The tensors of a file.
fn read(bytes: &[u8]) -> Vec<Tensor> {
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: Map<String, Value> = serde_json::from_slice(&bytes[8..header]).unwrap();
    let of = |(name, entry): (&String, &Value)| {
        let dtype = ["BF16", "F32", "F8_E4M3"].into_iter().find(|&dtype| entry["dtype"] == dtype).unwrap();
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let [start, end] = [0, 1].map(|i| header + number(&entry["data_offsets"][i]));
        let shape = entry["shape"].as_array().unwrap().iter().map(number).collect();
        Tensor { name: name.clone(), dtype, shape, data: bytes[start..end].to_vec() }
    };
    json.iter().filter(|(name, _)| *name != "__metadata__").map(of).collect()
}

fn write(path: &Path, tensors: &[Tensor]) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for t in tensors {
        let end = data.len() + t.data.len();
        let entry = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [data.len(), end]});
        header.insert(t.name.clone(), entry);
        data.extend_from_slice(&t.data);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let size = (header.len() as u64).to_le_bytes();
    fs::write(path, [&size[..], &header, &data].concat()).unwrap();
}

/// The value of an E4M3 code that is not NaN, written as its definition.
fn value(code: u8) -> f32 {
    let (sign, exponent, mantissa) = (code >> 7, i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
    let magnitude =
        if exponent == 0 { mantissa * 2f32.powi(-6) } else { (1.0 + mantissa) * 2f32.powi(exponent - 7) };
    if sign == 1 { -magnitude } else { magnitude }
}

/// The nearest code.
fn nearest(x: f32) -> u8 {
    let codes = (0..=255_u8).filter(|code| code & 0x7f != 0x7f);
    codes.min_by(|&a, &b| (value(a) - x).abs().total_cmp(&(value(b) - x).abs())).unwrap()
}

/// How factors are stored: their block of rows and columns (0: all), and their name.
#[derive(Clone, Copy)]
struct Kind {
    rows: usize,
    cols: usize,
    suffix: &'static str,
    config: &'static str,
}

const BLOCKS: Kind = Kind {
    rows: 128,
    cols: 128,
    suffix: "_scale_inv",
    config: r#"{"quant_method": "fp8", "weight_block_size": [128, 128]}"#,
};
const ROWS: Kind = Kind {
    rows: 1,
    cols: 0,
    suffix: "_scale",
    config: r#"{"quant_method": "compressed-tensors", "format": "float-quantized"}"#,
};
const WHOLE: Kind = Kind { rows: 0, cols: 0, suffix: "_scale", config: r#"{"quant_method": "fp8"}"# };

/// Replaces a matrix by E4M3 numbers and factors, and returns the numbers that they mean as bf16.
fn quantize(tensor: &Tensor, kind: Kind) -> (Vec<Tensor>, Vec<u8>) {
    let [rows, cols] = tensor.shape[..] else { panic!("a matrix") };
    let (of_rows, of_cols) =
        (if kind.rows == 0 { rows } else { kind.rows }, if kind.cols == 0 { cols } else { kind.cols });
    let blocks = [rows.div_ceil(of_rows), cols.div_ceil(of_cols)];
    let w: Vec<f32> =
        tensor.data.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
    let mut scales = vec![0.0_f32; blocks[0] * blocks[1]];
    let block = |i: usize| i / cols / of_rows * blocks[1] + i % cols / of_cols;
    w.iter().enumerate().for_each(|(i, w)| scales[block(i)] = scales[block(i)].max(w.abs() / 448.0));
    let q: Vec<u8> = w.iter().enumerate().map(|(i, w)| nearest(w / scales[block(i)])).collect();
    let meant = |(i, &q): (usize, &u8)| bf16::from_f32(value(q) * scales[block(i)]).to_le_bytes();
    let numbers = q.iter().enumerate().flat_map(meant).collect();
    let factors = Tensor {
        name: format!("{}{}", tensor.name, kind.suffix),
        dtype: "F32",
        shape: if kind.rows == 0 { vec![] } else { blocks.to_vec() },
        data: scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
    };
    let shape = tensor.shape.clone();
    let name = tensor.name.clone();
    (vec![Tensor { name, dtype: "F8_E4M3", shape, data: q }, factors], numbers)
}

/// A directory with FP8 matrices in all layers, and one with the same numbers in bf16.
fn directories(root: &Path, kind: Kind) -> [std::path::PathBuf; 2] {
    let (packed, plain) = (root.join("fp8"), root.join("bf16"));
    let config: Value = serde_json::from_str(kind.config).unwrap();
    copy_tiny_model("qwen3", &packed, |json| json["quantization_config"] = config);
    copy_tiny_model("qwen3", &plain, |_| ());
    let (mut fp8, mut floats) = (Vec::new(), Vec::new());
    for tensor in read(&fs::read(plain.join("model.safetensors")).unwrap()) {
        if tensor.shape.len() < 2 || !tensor.name.contains("layers.") {
            fp8.push(tensor.clone());
            floats.push(tensor);
            continue;
        }
        let (stored, numbers) = quantize(&tensor, kind);
        fp8.extend(stored);
        floats.push(Tensor { data: numbers, ..tensor });
    }
    write(&packed.join("model.safetensors"), &fp8);
    write(&plain.join("model.safetensors"), &floats);
    [packed, plain]
}

#[test]
fn fp8_matrices_have_the_logits_of_their_numbers_in_bf16() {
    for kind in [BLOCKS, ROWS, WHOLE] {
        let root = tempfile::tempdir().unwrap();
        let [fp8, plain] = directories(root.path(), kind).map(|path| load(&path, None));
        let ids: Vec<u32> = (3..40).collect();
        let (mut a, mut b) = (fp8.session(), plain.session());
        assert_eq!(a.forward(&ids).unwrap(), b.forward(&ids).unwrap(), "{}", kind.config);
    }
}

#[test]
fn damaged_and_unknown_quantizations_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let [path, _] = directories(root.path(), BLOCKS);
    let file = path.join("model.safetensors");
    let error = |edit: &mut dyn FnMut(&mut Vec<Tensor>)| {
        let whole = fs::read(&file).unwrap();
        let mut tensors = read(&whole);
        edit(&mut tensors);
        write(&file, &tensors);
        let result = Checkpoint::open(&path).and_then(|c| Model::load(c, &RunOptions::default()));
        fs::write(&file, whole).unwrap();
        result.unwrap_err().to_string()
    };
    let at = |tensors: &[Tensor], name: &str| tensors.iter().position(|t| t.name.ends_with(name)).unwrap();
    let missing = error(&mut |t| drop(t.remove(at(t, "0.mlp.down_proj.weight_scale_inv"))));
    assert!(missing.contains("blk.0.ffn_down.weight_scale is missing"), "{missing}");
    let shape = error(&mut |t| {
        let i = at(t, "0.mlp.down_proj.weight_scale_inv");
        (t[i].shape, t[i].data) = (vec![7, 1], vec![0; 28]);
    });
    assert!(shape.contains("blk.0.ffn_down.weight: its factors have another shape"), "{shape}");
    let nan = error(&mut |t| {
        let i = at(t, "1.self_attn.q_proj.weight");
        t[i].data[5] = 0x7f;
    });
    assert!(nan.contains("blk.1.attn_q.weight") && nan.contains("NaN"), "{nan}");
    for (config, said) in [
        (json!({"quant_method": "awq"}), "quantization awq"),
        (json!({"quant_method": "fp8", "weight_block_size": [64, 64]}), "[64,64]"),
        (json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}), "compressed-tensors"),
        (json!({}), "without a name"),
    ] {
        let to = root.path().join("other");
        copy_tiny_model("qwen3", &to, |json| json["quantization_config"] = config);
        let error = Checkpoint::open(&to).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
