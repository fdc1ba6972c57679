//! Writers of model files, good and bad, for the tests of the loaders.
#![allow(dead_code)]

use scrimp_kernels::DType;

/// GGUF's numbers of value types.
pub(crate) const U32: u32 = 4;
pub(crate) const I32: u32 = 5;
pub(crate) const F32: u32 = 6;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STR: u32 = 8;
pub(crate) const ARRAY: u32 = 9;
pub(crate) const U64: u32 = 10;

/// GGUF's number of a tensor type.
pub(crate) fn type_number(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q5_0 => 6,
        DType::Q5_1 => 7,
        DType::Q8_0 => 8,
        DType::Q4_K => 12,
        DType::Q5_K => 13,
        DType::Q6_K => 14,
        DType::BF16 => 30,
        DType::Q2_K => 10,
        DType::Q3_K => 11,
        DType::IQ2_XXS => 16,
        DType::IQ2_XS => 17,
        DType::IQ3_XXS => 18,
        DType::IQ1_S => 19,
        DType::IQ4_NL => 20,
        DType::IQ3_S => 21,
        DType::IQ2_S => 22,
        DType::IQ4_XS => 23,
        DType::IQ1_M => 29,
        DType::TQ1_0 => 34,
        DType::TQ2_0 => 35,
        DType::MXFP4 => 39,
        DType::NVFP4 => 40,
        DType::Q1_0 => 41,
        DType::Q2_0 => 42,
        DType::CB4 | DType::CB3 | DType::CB2 => unreachable!("GGUF has no {dtype}"),
    }
}

/// Builds a GGUF file pair by pair and tensor by tensor.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    pub(crate) pairs: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Tensor>,
}

/// One tensor of [`Gguf`].
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
}

pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// A pair from raw parts.
pub(crate) fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(key.as_bytes())[..], &kind.to_le_bytes(), value].concat()
}

impl Gguf {
    pub(crate) fn new() -> Self {
        Self { version: 3, alignment: 32, pairs: Vec::new(), tensors: Vec::new() }
    }

    pub(crate) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.pairs.push(pair(key, kind, value));
        self
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, U32, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, F32, &value.to_le_bytes())
    }

    pub(crate) fn str(self, key: &str, value: &str) -> Self {
        self.raw(key, STR, &string(value.as_bytes()))
    }

    pub(crate) fn strings(self, key: &str, values: &[&[u8]]) -> Self {
        let mut bytes = [&STR.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        values.iter().for_each(|v| bytes.extend(string(v)));
        self.raw(key, ARRAY, &bytes)
    }

    pub(crate) fn numbers(self, key: &str, kind: u32, values: &[[u8; 4]]) -> Self {
        let head = [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.raw(key, ARRAY, &[head, values.concat()].concat())
    }

    pub(crate) fn tensor(mut self, name: &str, dtype: DType, shape: &[usize]) -> Self {
        self.tensors.push(Tensor { name: name.to_owned(), shape: shape.to_vec(), dtype });
        self
    }

    /// The file, and where each pair, tensor and part begins.
    pub(crate) fn build(&self) -> (Vec<u8>, Vec<usize>) {
        let mut out = b"GGUF".to_vec();
        let mut marks = vec![0, 4, 8, 16];
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        for pair in &self.pairs {
            marks.push(out.len());
            out.extend(pair);
        }
        let mut offset = 0;
        let mut sizes = Vec::new();
        for tensor in &self.tensors {
            marks.push(out.len());
            out.extend(string(tensor.name.as_bytes()));
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for &dim in tensor.shape.iter().rev() {
                out.extend((dim as u64).to_le_bytes());
            }
            out.extend(type_number(tensor.dtype).to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            let (&cols, outer) = tensor.shape.split_last().unwrap();
            let bytes = tensor.dtype.row_bytes(cols).unwrap() * outer.iter().product::<usize>();
            sizes.push(bytes);
            offset = (offset + bytes).next_multiple_of(self.alignment);
        }
        for (i, bytes) in sizes.into_iter().enumerate() {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            marks.push(out.len());
            out.extend((0..bytes).map(|b| (b * 7 + i) as u8));
        }
        (out, marks)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.build().0
    }
}

/// A whole, if tiny, model of the shape of real files: two layers, a tokenizer, several weight formats.
pub(crate) fn tiny_llama() -> Gguf {
    let (hidden, heads, kv_heads, ffn, vocab) = (256, 4, 2, 512, 5);
    let kv = hidden / heads * kv_heads;
    let mut gguf = Gguf::new()
        .str("general.architecture", "llama")
        .str("general.name", "tiny")
        .u32("llama.block_count", 2)
        .u32("llama.context_length", 128)
        .u32("llama.embedding_length", hidden as u32)
        .u32("llama.feed_forward_length", ffn as u32)
        .u32("llama.attention.head_count", heads as u32)
        .u32("llama.attention.head_count_kv", kv_heads as u32)
        .u32("llama.rope.dimension_count", (hidden / heads) as u32)
        .f32("llama.rope.freq_base", 10_000.0)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .raw("tokenizer.ggml.add_bos_token", BOOL, &[1])
        .strings("tokenizer.ggml.tokens", &[b"<s>", b"a", "\u{e9}".as_bytes(), b"", b"\xff"])
        .numbers("tokenizer.ggml.scores", F32, &[0f32, -1.0, -2.0, -3.0, -4.0].map(f32::to_le_bytes))
        .numbers("tokenizer.ggml.token_type", I32, &[3i32, 1, 1, 1, 6].map(i32::to_le_bytes))
        .tensor("token_embd.weight", DType::Q8_0, &[vocab, hidden]);
    for i in 0..2 {
        let name = |stem: &str| format!("blk.{i}.{stem}.weight");
        gguf = gguf
            .tensor(&name("attn_norm"), DType::F32, &[hidden])
            .tensor(&name("attn_q"), DType::Q4_0, &[hidden, hidden])
            .tensor(&name("attn_k"), DType::Q5_1, &[kv, hidden])
            .tensor(&name("attn_v"), DType::Q6_K, &[kv, hidden])
            .tensor(&name("attn_output"), DType::BF16, &[hidden, hidden])
            .tensor(&name("ffn_norm"), DType::F32, &[hidden])
            .tensor(&name("ffn_gate"), DType::Q4_K, &[ffn, hidden])
            .tensor(&name("ffn_up"), DType::Q5_K, &[ffn, hidden])
            .tensor(&name("ffn_down"), DType::Q4_1, &[hidden, ffn]);
    }
    gguf.tensor("output_norm.weight", DType::F32, &[hidden])
}

/// A safetensors file from its JSON header and the length of its data.
pub(crate) fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

/// A safetensors file of bf16 zeros.
pub(crate) fn bf16_safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * 2;
        let info = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), info);
    }
    safetensors(&serde_json::Value::Object(header).to_string(), end)
}

/// Most address space that this process has had, bytes (Linux; 0 elsewhere).
pub(crate) fn peak_address_space() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<usize>().ok()).unwrap_or(0) * 1024
}
