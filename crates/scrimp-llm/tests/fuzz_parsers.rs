//! Mutated real headers: no parser may panic on any of them. See `fuzz/README.md`.

mod common;

use std::{
    fs, panic,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use common::tiny_llama;
use scrimp_base::SplitMix64;
use scrimp_llm::{
    checkpoint::Checkpoint,
    families::{self, HfConfig},
    load::{GgufFile, SafetensorsFile, Source},
};

/// Mutations of an ordinary run.
const RUNS: usize = 20_000;

fn corpus(kind: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(kind);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Numbers that sizes go wrong on.
const ODD: [u64; 14] = [
    0,
    1,
    7,
    31,
    33,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 60,
    i64::MAX as u64,
    u64::MAX - 31,
    u64::MAX,
];

fn mutate(rng: &mut SplitMix64, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[rng.below(seeds.len() as u64) as usize].clone();
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len() as u64) as usize;
        let len = (rng.below(24) as usize).min(bytes.len() - at);
        match rng.below(8) {
            _ if bytes.is_empty() => bytes.push(rng.next_u64() as u8),
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.next_u64() as u8,
            2 | 3 => {
                let number = ODD[rng.below(ODD.len() as u64) as usize].to_le_bytes();
                let width = [1, 4, 8][rng.below(3) as usize].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            4 => drop(bytes.drain(at..at + len)),
            5 => {
                let copy = bytes[at..at + len].to_vec();
                let to = rng.below(bytes.len() as u64) as usize;
                drop(bytes.splice(to..to, copy));
            }
            6 => {
                let other = &seeds[rng.below(seeds.len() as u64) as usize];
                let from = rng.below(other.len() as u64) as usize;
                let copy = other[from..].iter().take(len).copied();
                drop(bytes.splice(at..at + len, copy));
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Runs `target` on every seed and on mutations of them.
fn fuzz(kind: &str, seeds: &[Vec<u8>], target: impl Fn(&[u8]) + panic::RefUnwindSafe) {
    assert!(!seeds.is_empty(), "no corpus for {kind}");
    let seconds = std::env::var("SCRIMP_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    let end = seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let seed = match end {
        Some(_) => {
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64)
        }
        None => 1,
    };
    let try_one = |bytes: &[u8]| {
        if let Err(payload) = panic::catch_unwind(|| target(bytes)) {
            let path = std::env::temp_dir().join(format!("scrimp-fuzz-{kind}-{}", std::process::id()));
            fs::write(&path, bytes).unwrap();
            eprintln!("the {kind} parser panics on {}", path.display());
            panic::resume_unwind(payload);
        }
    };
    seeds.iter().for_each(|bytes| try_one(bytes));
    let mut rng = SplitMix64::new(seed);
    let mut runs = 0;
    while end.map_or(runs < RUNS, |end| Instant::now() < end) {
        try_one(&mutate(&mut rng, seeds));
        runs += 1;
    }
    eprintln!("{kind}: {runs} mutations of {} files, seed {seed}", seeds.len());
}

#[test]
fn gguf() {
    let mut seeds = corpus("gguf");
    for bytes in &seeds {
        GgufFile::parse(bytes).unwrap();
    }
    let (tiny, marks) = tiny_llama().build();
    seeds.push(tiny[..marks[marks.len() - 1]].to_vec());
    fuzz("gguf", &seeds, |bytes| {
        let Ok(file) = GgufFile::parse(bytes) else { return };
        let metadata = file.metadata();
        for key in metadata.keys() {
            let _ = (metadata.str(key), metadata.u32(key), metadata.f32(key), metadata.bool(key));
            let _ = (metadata.str_array(key), metadata.f32_array(key), metadata.i32_array(key));
        }
        file.tensors().iter().for_each(|t| assert_eq!(file.bytes(t).len(), t.range.len()));
        let _ = Checkpoint::from_source(Source::from_bytes(Path::new("fuzz.gguf"), bytes.to_vec()));
    });
}

#[test]
fn safetensors() {
    let parse =
        |bytes: &[u8]| SafetensorsFile::from_source(Source::from_bytes(Path::new("fuzz"), bytes.to_vec()));
    let seeds = corpus("safetensors");
    for bytes in &seeds {
        parse(bytes).unwrap();
    }
    fuzz("safetensors", &seeds, |bytes| {
        let Ok(file) = parse(bytes) else { return };
        file.tensors().iter().for_each(|t| assert!(file.source().get(t.range.clone()).is_some()));
    });
}

#[test]
fn config() {
    let cases: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../../../testdata/hf_configs/golden.json")).unwrap();
    let configs = cases.iter().flat_map(|case| case["configs"].as_array().unwrap());
    let mut seeds = corpus("config");
    seeds.extend(configs.map(|config| config.to_string().into_bytes()));
    fuzz("config", &seeds, |bytes| {
        let Ok(json) = serde_json::from_slice(bytes) else { return };
        let Ok(hf) = HfConfig::new(Path::new("config.json"), &json) else { return };
        let Ok(Some(kind)) = hf.text("model_type") else { return };
        let Ok(family) = families::by_model_type(kind) else { return };
        if let Ok(config) = family.hf_config(&hf) {
            assert!(config.rope.inv_freq.iter().all(|f| f.is_finite()));
            assert_eq!(config.sliding_window.len(), config.n_layers);
        }
    });
}
