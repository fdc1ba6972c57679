//! Damaged and hostile GGUF files: each gives an error (or, where the damage cannot be seen, a file that can be used),
//! never a panic, and never memory that the file's size does not justify.

mod common;

use std::path::Path;

use common::{ARRAY, BOOL, F32, Gguf, I32, STR, U32, U64, pair, peak_address_space, string, tiny_llama};
use proptest::prelude::*;
use scrimp_base::SplitMix64;
use scrimp_kernels::DType;
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::Result,
    load::{GgufFile, Source},
};

/// Parses `bytes` and, when that works, reads everything that there is to read.
fn exercise(bytes: &[u8]) -> Result<()> {
    let file = GgufFile::parse(bytes)?;
    let metadata = file.metadata();
    for key in metadata.keys() {
        let _ =
            (metadata.str(key), metadata.u64(key), metadata.u32(key), metadata.f32(key), metadata.bool(key));
        let _ = (metadata.str_array(key), metadata.f32_array(key), metadata.i32_array(key));
        if let Ok(Some(items)) = metadata.bytes_array(key) {
            assert_eq!(items.len(), items.clone().count(), "{key}");
        }
    }
    for tensor in file.tensors() {
        assert_eq!(file.bytes(tensor).len(), tensor.range.len());
    }
    let _ = open(bytes);
    Ok(())
}

fn open(bytes: &[u8]) -> Result<Checkpoint> {
    Checkpoint::from_source(Source::from_bytes(Path::new("attack.gguf"), bytes.to_vec()))
}

fn refused(bytes: &[u8], words: &str) {
    let error = exercise(bytes).expect_err(words).to_string();
    assert!(error.contains(words), "{error:?} should say {words:?}");
}

#[test]
fn the_unharmed_file_is_fine() {
    let bytes = tiny_llama().bytes();
    exercise(&bytes).unwrap();
    let checkpoint = open(&bytes).unwrap();
    assert_eq!(checkpoint.config().n_kv_heads, 2);
    let view = checkpoint.tensor("blk.1.ffn_down.weight").unwrap();
    assert_eq!((view.encoding.rows(), view.shape), (Some(DType::Q4_1), vec![256, 512]));
    assert_eq!(view.data.len(), 256 * 512 / 32 * 20);
    assert!(checkpoint.tensor("blk.2.ffn_down.weight").unwrap_err().to_string().contains("blk.2.ffn_down"));

    let metadata = checkpoint.gguf_metadata().unwrap();
    let tokens: Vec<_> = metadata.bytes_array("tokenizer.ggml.tokens").unwrap().unwrap().collect();
    assert_eq!(tokens, [&b"<s>"[..], b"a", "é".as_bytes(), b"", b"\xff"]);
    assert!(metadata.str_array("tokenizer.ggml.tokens").unwrap_err().to_string().contains("item 4"));
    assert_eq!(metadata.i32_array("tokenizer.ggml.token_type").unwrap().unwrap(), [3, 1, 1, 1, 6]);
    assert_eq!(metadata.f32_array("tokenizer.ggml.scores").unwrap().unwrap()[2], -2.0);
    assert_eq!(metadata.bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(metadata.u32("no.such.key").unwrap(), None);
    assert!(metadata.u32("general.name").unwrap_err().to_string().contains("should be an integer"));

    let version_2 = Gguf { version: 2, ..tiny_llama() };
    open(&version_2.bytes()).unwrap();
}

#[test]
fn every_truncation_is_refused() {
    let (bytes, marks) = tiny_llama().build();
    let header = *marks.iter().filter(|&&m| m < 8192).max().unwrap();
    let mut ends: Vec<usize> = (0..header).collect();
    ends.extend(marks.iter().flat_map(|&m| [m.saturating_sub(1), m, m + 1]));
    ends.push(bytes.len() - 1);
    for end in ends.into_iter().filter(|&end| end < bytes.len()) {
        assert!(exercise(&bytes[..end]).is_err(), "cut to {end} of {} bytes", bytes.len());
    }
}

#[test]
fn bit_flips_do_no_harm() {
    let (bytes, marks) = tiny_llama().build();
    let header = *marks.iter().filter(|&&m| m < 8192).max().unwrap();
    let mut rng = SplitMix64::new(11);
    let mut refused = 0;
    for _ in 0..4000 {
        let mut bad = bytes.clone();
        for _ in 0..=rng.below(3) {
            bad[rng.below(header as u64) as usize] ^= 1 << rng.below(8);
        }
        refused += usize::from(exercise(&bad).is_err());
    }
    assert!(refused > 1000, "only {refused} of 4000 flips were noticed");
}

#[test]
fn absurd_claims_are_refused_without_memory() {
    let before = peak_address_space();
    for claim in [1u64 << 60, u64::MAX, 1 << 40, 1 << 32, 1 << 28] {
        let count = claim.to_le_bytes();
        for at in [8, 16] {
            let mut bytes = tiny_llama().bytes();
            bytes[at..at + 8].copy_from_slice(&count);
            refused(&bytes, "number of");
        }
        // A key, a string, and arrays of each type of that length.
        let mut key = Gguf::new();
        key.pairs.push([&count[..], b"a key of some bytes"].concat());
        refused(&key.bytes(), "a metadata key");
        refused(&Gguf::new().raw("k", STR, &[&count[..], b"x"].concat()).bytes(), "bytes");
        for item in [U32, I32, F32, BOOL, STR, U64] {
            let value = [&item.to_le_bytes()[..], &count, &[0; 64]].concat();
            refused(&Gguf::new().raw("k", ARRAY, &value).bytes(), "can hold");
        }
        // One string of an array.
        let value = [&STR.to_le_bytes()[..], &1u64.to_le_bytes(), &count, b"x"].concat();
        refused(&Gguf::new().raw("k", ARRAY, &value).bytes(), "left");
    }
    let grown = peak_address_space() - before;
    assert!(grown < 512 << 20, "{grown} bytes for a few small files");
}

#[test]
fn bad_pairs_are_refused() {
    let nested =
        [&ARRAY.to_le_bytes()[..], &1u64.to_le_bytes(), &U32.to_le_bytes(), &0u64.to_le_bytes()].concat();
    refused(&Gguf::new().raw("k", ARRAY, &nested).bytes(), "array of arrays");
    refused(&Gguf::new().raw("k", 13, &[0; 8]).bytes(), "unknown type 13");
    refused(&Gguf::new().raw("k", BOOL, &[2]).bytes(), "truth value");
    refused(&Gguf::new().u32("k", 1).u32("k", 1).bytes(), "twice");
    let mut empty = Gguf::new();
    empty.pairs.push(pair("", U32, &[0; 4]));
    refused(&empty.bytes(), "0 bytes long");
    let mut binary = Gguf::new();
    binary.pairs.push([&string(b"\xc3\x28")[..], &U32.to_le_bytes(), &[0; 4]].concat());
    refused(&binary.bytes(), "UTF-8");
}

#[test]
fn bad_alignments_are_refused() {
    for alignment in [0, 3, 31, 33, 1 << 21, u32::MAX] {
        refused(&Gguf::new().u32("general.alignment", alignment).bytes(), "power of two");
    }
    refused(&Gguf::new().str("general.alignment", "32").bytes(), "should be an integer");
    let wide = Gguf { alignment: 4096, ..tiny_llama().u32("general.alignment", 4096) };
    open(&wide.bytes()).unwrap();
}

/// A file with one tensor whose description is `info` (after the name), and 64 bytes of data.
fn one_tensor(info: &[u8]) -> Vec<u8> {
    let mut bytes = [b"GGUF", &3u32.to_le_bytes()[..], &1u64.to_le_bytes(), &0u64.to_le_bytes()].concat();
    bytes.extend(string(b"t"));
    bytes.extend(info);
    bytes.resize(bytes.len().next_multiple_of(32) + 64, 0);
    bytes
}

fn info(dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = (dims.len() as u32).to_le_bytes().to_vec();
    dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

#[test]
fn bad_tensors_are_refused() {
    exercise(&one_tensor(&info(&[8, 2], 0, 0))).unwrap();
    refused(&one_tensor(&info(&[], 0, 0)), "0 dimensions");
    refused(&one_tensor(&info(&[1; 5], 0, 0)), "5 dimensions");
    refused(&one_tensor(&info(&[0], 0, 0)), "dimension of 0");
    refused(&one_tensor(&info(&[8, 0], 0, 0)), "dimension of 0");
    refused(&one_tensor(&info(&[1 << 63, 1 << 63], 0, 0)), "too large");
    refused(&one_tensor(&info(&[1 << 32, 1 << 31, 2], 1, 0)), "too large");
    refused(&one_tensor(&info(&[u64::MAX], 0, 0)), "too large");
    refused(&one_tensor(&info(&[1 << 61], 0, 0)), "cut-off");
    refused(&one_tensor(&info(&[33], 8, 0)), "whole number of blocks of 32");
    refused(&one_tensor(&info(&[128], 12, 0)), "whole number of blocks of 256");
    refused(&one_tensor(&info(&[8], 0, 16)), "no multiple of the alignment");
    refused(&one_tensor(&info(&[8], 0, 64)), "cut-off");
    refused(&one_tensor(&info(&[8], 0, u64::MAX - 31)), "impossible offset");
    refused(&one_tensor(&info(&[8], 0, 1 << 62)), "cut-off");
    refused(&one_tensor(&info(&[32], 9, 0)), "type 9 (Q8_1)");
    refused(&one_tensor(&info(&[32], 15, 0)), "type 15 (Q8_K)");
    refused(&one_tensor(&info(&[32], 31, 0)), "type 31 (Q4_0_4_4)");
    refused(&one_tensor(&info(&[32], 4_000_000_000, 0)), "type 4000000000 (unknown");
    let twice = Gguf::new().tensor("t", DType::F32, &[8]).tensor("t", DType::F32, &[8]);
    refused(&twice.bytes(), "tensor t is there twice");
    let mut overlap = Gguf::new().tensor("a", DType::F32, &[16]).tensor("b", DType::F32, &[16]).bytes();
    let header = overlap.len() - 128;
    let offset = overlap[..header].windows(8).rposition(|w| w == 64u64.to_le_bytes()).unwrap();
    overlap[offset..offset + 8].copy_from_slice(&32u64.to_le_bytes());
    refused(&overlap, "overlap");
}

#[test]
fn other_kinds_of_files_are_named() {
    let says = |bytes: &[u8], words: &str| {
        let error = open(bytes).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} should say {words:?}");
    };
    says(b"", "neither");
    says(b"GGUF", "version");
    says(&Gguf { version: 1, ..Gguf::new() }.bytes(), "version 1");
    says(&Gguf { version: 4, ..Gguf::new() }.bytes(), "version 4");
    says(&Gguf { version: 0, ..Gguf::new() }.bytes(), "version 0");
    says(&Gguf { version: 3u32.swap_bytes(), ..Gguf::new() }.bytes(), "big endian");
    says(b"PK\x03\x04 torch", "pickle");
    says(b"tjgg1234", "GGML");
    says(&Gguf::new().bytes(), "general.architecture is missing");
    says(&Gguf::new().str("general.architecture", "mamba").bytes(), "mamba");
    says(&tiny_llama().u32("split.count", 2).bytes(), "one of 2 parts");
    says(&tiny_llama().u32("llama.expert_count", 8).bytes(), "llama.expert_used_count is missing");
    let experts =
        |used| tiny_llama().u32("llama.expert_count", 8).u32("llama.expert_used_count", used).bytes();
    says(&experts(9), "a token passes 9 of 8 experts");
    says(&experts(2), "blk.0.ffn_gate_inp.weight is missing");
}

#[test]
fn configurations_that_do_not_fit_the_tensors_are_refused() {
    let says = |gguf: &Gguf, words: &str| {
        let error = open(&gguf.bytes()).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} should say {words:?}");
    };
    let with = |key: &str, value: u32| {
        let mut gguf = tiny_llama();
        gguf.pairs.retain(|p| !p.starts_with(&string(key.as_bytes())));
        gguf.u32(key, value)
    };
    says(&with("llama.block_count", 0), "from 1 to");
    says(&with("llama.block_count", 3), "blk.2.attn_norm.weight is missing");
    says(&with("llama.block_count", u32::MAX), "from 1 to");
    says(&with("llama.embedding_length", 512), "token_embd.weight has shape");
    says(&with("llama.embedding_length", 255), "does not divide");
    says(&with("llama.feed_forward_length", 256), "ffn_gate.weight has shape");
    says(&with("llama.attention.head_count", 0), "from 1 to");
    says(&with("llama.attention.head_count", 3), "does not divide");
    says(&with("llama.attention.head_count_kv", 3), "evenly");
    says(&with("llama.attention.head_count_kv", 4), "attn_k.weight has shape");
    says(&with("llama.rope.dimension_count", 63), "even");
    says(&with("llama.rope.dimension_count", 66), "from 1 to 64");
    says(&with("llama.rope.freq_base", 1), "floating-point");
    says(&with("llama.context_length", 0), "from 1 to");
    for base in [0.0, -1.0, f32::NAN, f32::INFINITY, 1.0] {
        let mut gguf = tiny_llama();
        gguf.pairs.retain(|p| !p.starts_with(&string(b"llama.rope.freq_base")));
        says(&gguf.f32("llama.rope.freq_base", base), "base");
    }
    let mut gguf = tiny_llama();
    gguf.tensors.retain(|t| t.name != "blk.1.attn_v.weight");
    says(&gguf, "blk.1.attn_v.weight is missing");
    says(&tiny_llama().tensor("blk.0.ffn_up.bias", DType::F32, &[512]), "blk.0.ffn_up.bias is not supported");
    says(&tiny_llama().tensor("blk.0.ffn_up.scale", DType::F32, &[1]), "blk.0.ffn_up.scale is a factor");
    let mut gguf = tiny_llama();
    gguf.pairs.retain(|p| !p.starts_with(&string(b"tokenizer.ggml.tokens")));
    says(&gguf.strings("tokenizer.ggml.tokens", &[b"a"]), "different models");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: scrimp_testkit::cases(512), ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(exercise(&bytes).is_err());
    }

    #[test]
    fn random_bytes_after_a_header(
        counts in (0u64..4, 0u64..4),
        bytes in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => 0u8..16, 1 => any::<u8>()], 0..512),
    ) {
        let head = [b"GGUF", &3u32.to_le_bytes()[..], &counts.0.to_le_bytes(), &counts.1.to_le_bytes()].concat();
        let _ = exercise(&[head, bytes].concat());
    }
}

/// The parts of `tiny_llama`, with `split.*` metadata: the first has the metadata and the first tensors.
fn parts(count: usize) -> Vec<Gguf> {
    let whole = tiny_llama();
    let tensors = whole.tensors.len();
    let chunks = whole.tensors.chunks(tensors.div_ceil(count));
    chunks
        .enumerate()
        .map(|(no, tensors_of_part)| {
            let pairs = if no == 0 { whole.pairs.clone() } else { Vec::new() };
            Gguf { pairs, tensors: tensors_of_part.to_vec(), ..Gguf::new() }
                .u32("split.no", no as u32)
                .u32("split.count", count as u32)
                .u32("split.tensors.count", tensors as u32)
        })
        .collect()
}

/// Writes parts under the names that belong to them and returns their paths.
fn write_parts(dir: &Path, parts: &[Gguf]) -> Vec<std::path::PathBuf> {
    let path = |no: usize| dir.join(format!("m-{no:05}-of-{:05}.gguf", parts.len()));
    let write = |(i, part): (usize, &Gguf)| {
        std::fs::write(path(i + 1), part.bytes()).unwrap();
        path(i + 1)
    };
    parts.iter().enumerate().map(write).collect()
}

#[test]
fn any_part_of_a_split_file_opens_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let paths = write_parts(dir.path(), &parts(3));
    let names = |checkpoint: &Checkpoint| {
        let mut names: Vec<_> = checkpoint.tensor_names().map(str::to_owned).collect();
        names.sort();
        names
    };
    let whole = open(&tiny_llama().bytes()).unwrap();
    let bytes: u64 = paths.iter().map(|path| path.metadata().unwrap().len()).sum();
    for path in &paths {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(names(&checkpoint), names(&whole));
        assert_eq!(checkpoint.file_bytes(), bytes);
        assert!(checkpoint.gguf_metadata().unwrap().contains("tokenizer.ggml.tokens"));
        let last = GgufFile::open(&paths[2]).unwrap();
        let tensor = last.tensors().last().unwrap();
        assert_eq!(checkpoint.tensor(&tensor.name).unwrap().data, last.bytes(tensor));
    }
}

#[test]
fn split_files_that_do_not_belong_together_are_refused() {
    let says = |change: &dyn Fn(&Path, &mut Vec<Gguf>), words: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let mut all = parts(3);
        change(dir.path(), &mut all);
        let paths = write_parts(dir.path(), &all);
        change(dir.path(), &mut all); // removes files
        let error = Checkpoint::open(paths.iter().find(|path| path.exists()).unwrap()).unwrap_err();
        let text = format!("{error} {}", error.hint().map(ToString::to_string).unwrap_or_default());
        assert!(words.iter().all(|words| text.contains(words)), "{text} {words:?}");
    };
    let remove = |dir: &Path, _: &mut Vec<Gguf>| {
        for no in [1, 3] {
            let _ = std::fs::remove_file(dir.join(format!("m-{no:05}-of-00003.gguf")));
        }
    };
    says(&remove, &["missing: m-00001-of-00003.gguf, m-00003-of-00003.gguf", "all 3 parts"]);
    says(&|_, all| all.swap(1, 2), &["m-00002-of-00003", "split.no is 2"]);
    says(&|_, all| all[2] = Gguf::new().u32("split.no", 2), &["split.count missing"]);
    says(&|_, all| drop(all[2].tensors.pop()), &["tensors together", "different models"]);
    says(
        &|_, all| {
            let twice = all[0].tensors[0].clone();
            all[2].tensors.push(twice);
        },
        &["is in another part too"],
    );
    // Without the metadata of the first part, and under another name.
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("renamed.gguf");
    std::fs::write(&other, parts(3)[1].bytes()).unwrap();
    let error = Checkpoint::open(&other).unwrap_err().to_string();
    assert!(error.contains("one of 3 parts"), "{error}");
}
