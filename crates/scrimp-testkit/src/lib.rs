//! Shared code of the tests: test data, tiny models, real models, random numbers. It is a dev-dependency only.
#![forbid(unsafe_code)]

use scrimp_base::SplitMix64;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The path `testdata/RELATIVE` of the repository.
pub fn testdata(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(relative)
}

/// Cases of a property test that has `n` on a CPU: fewer where an emulator runs the tests. The variable
/// `SCRIMP_TEST_CASES_DIVISOR` has the factor.
pub fn cases(n: u32) -> u32 {
    let divisor = std::env::var("SCRIMP_TEST_CASES_DIVISOR").ok().and_then(|text| text.parse().ok());
    (n / divisor.unwrap_or(1).max(1)).max(1)
}

/// Reads the JSON file `testdata/RELATIVE`.
///
/// # Panics
/// The file is missing or has another structure.
pub fn read_json<T: DeserializeOwned>(relative: &str) -> T {
    let path = testdata(relative);
    let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The names of tiny models that cover all families without experts.
pub const TINY_MODELS: [&str; 16] = [
    "llama",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "gemma3-softcap",
    "phi3",
    "smollm3",
    "granite",
    "granitehybrid",
    "olmo2",
    "olmo3",
    "ministral3",
    "glm4",
];

/// The path of a tiny model with random weights: `testdata/tiny/NAME`.
pub fn tiny_model(name: &str) -> PathBuf {
    testdata("tiny").join(name)
}

/// Copies a tiny model to the new directory `to` and changes its `config.json` with `edit`.
///
/// # Panics
/// A file cannot be copied.
pub fn copy_tiny_model(name: &str, to: &Path, edit: impl FnOnce(&mut Value)) {
    let from = tiny_model(name);
    fs::create_dir_all(to).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
    for entry in fs::read_dir(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let path = entry.expect("a directory entry").path();
        let name = path.file_name().expect("a file name");
        fs::copy(&path, to.join(name)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let path = to.join("config.json");
    let text = fs::read(&path).expect("config.json");
    let mut config = serde_json::from_slice(&text).expect("config.json is JSON");
    edit(&mut config);
    fs::write(path, config.to_string()).expect("config.json can be written");
}

/// A real model in the directory `SCRIMP_TEST_MODELS`. Without it, prints SKIPPED, which `scripts/test` counts, and
/// returns
/// `None`.
pub fn real_model(file: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("SCRIMP_TEST_MODELS") else {
        eprintln!("SKIPPED: {file}: SCRIMP_TEST_MODELS is not set to a directory of models");
        return None;
    };
    let path = Path::new(&folder).join(file);
    if !path.is_file() {
        eprintln!("SKIPPED: {} does not exist", path.display());
        return None;
    }
    Some(path)
}

/// The Rust files of a folder and of the folders in it.
///
/// # Panics
/// When a folder cannot be read.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// `n` random numbers from -1 to 1. The same seed gives the same numbers.
pub fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut random = SplitMix64::new(seed);
    (0..n).map(|_| 2.0 * random.next_f32() - 1.0).collect()
}
