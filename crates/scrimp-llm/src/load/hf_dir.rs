//! A Hugging Face directory: `config.json` and one or many safetensors files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use super::{Source, safetensors::SafetensorsFile};
use crate::error::{Error, Result};

/// Maximum size of `config.json`. Real files have a few KiB, including LongRoPE's lists.
const MAX_CONFIG: u64 = 4 << 20;
/// Maximum size of the index of shards.
const MAX_INDEX: u64 = 64 << 20;
const MAX_SHARDS: usize = 1024;

/// The content of a Hugging Face directory.
#[derive(Debug)]
pub struct HfDir {
    /// Path of `config.json`.
    pub config_path: PathBuf,
    /// `config.json`.
    pub config: Value,
    /// Its tensor files.
    pub shards: Vec<SafetensorsFile>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl HfDir {
    /// Reads the configuration and maps the tensor files of `dir`.
    ///
    /// # Errors
    /// When files are missing or damaged, or the weights are not in safetensors files.
    pub fn open(dir: &Path) -> Result<Self> {
        let config_path = dir.join("config.json");
        if !config_path.is_file() {
            return Err(no_config(dir));
        }
        let config = read_json(&config_path, MAX_CONFIG)?;
        let shards = open_shards(dir)?;
        Ok(Self { config_path, config, shards })
    }
}

fn open_shards(dir: &Path) -> Result<Vec<SafetensorsFile>> {
    let index_path = dir.join("model.safetensors.index.json");
    if !index_path.is_file() {
        let file = dir.join("model.safetensors");
        let file = if file.is_file() { file } else { only_safetensors(dir)? };
        return Ok(vec![SafetensorsFile::from_source(Source::open(&file)?)?]);
    }
    let index: Index = read_json(&index_path, MAX_INDEX)?;
    let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    if names.len() > MAX_SHARDS {
        return Err(Error::damaged_file(&index_path, format!("names {} files", names.len())));
    }
    let mut shards = Vec::with_capacity(names.len());
    let mut stored = BTreeMap::new();
    for name in names {
        // Only plain names: an index must not refer to files outside its directory.
        if name.is_empty() || Path::new(name).file_name() != Some(name.as_ref()) {
            return Err(Error::damaged_file(&index_path, format!("{name:?} is no file name")));
        }
        let shard = SafetensorsFile::from_source(Source::open(&dir.join(name))?)?;
        for tensor in shard.tensors() {
            if stored.insert(tensor.name.clone(), name).is_some() {
                return Err(shard.source().bad(format!("tensor {} is in another file too", tensor.name)));
            }
        }
        shards.push(shard);
    }
    if let Some((tensor, file)) = index
        .weight_map
        .iter()
        .find(|(tensor, file)| stored.get(*tensor).is_none_or(|&stored| stored != file.as_str()))
    {
        return Err(Error::damaged_file(
            &index_path,
            format!("tensor {tensor} is not in {file}, where it should be"),
        ));
    }
    Ok(shards)
}

/// The only safetensors file of `dir`, under any name.
fn only_safetensors(dir: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    let mut pickled = None;
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => found.push(path),
            Some("bin" | "pt" | "pth" | "ckpt") => pickled = Some(path),
            _ => {}
        }
    }
    match (found.len(), pickled) {
        (1, _) => Ok(found.remove(0)),
        (0, Some(pickled)) => Err(pickle(&pickled)),
        (0, None) => Err(Error::bad_input(format!("{}: no model.safetensors", dir.display()))
            .with_hint("fetch the model's *.safetensors files too")),
        (n, _) => Err(Error::bad_input(format!(
            "{}: {n} safetensors files, but no model.safetensors.index.json",
            dir.display()
        ))
        .with_hint("fetch the index too; it says which tensor is in which file")),
    }
}

/// The error for PyTorch's pickle files. Reading such a file can execute code.
pub(crate) fn pickle(path: &Path) -> Error {
    Error::unsupported(
        format!("{}: PyTorch's pickled checkpoints are not read", path.display()),
        "use the model's safetensors files, or write some: \
         AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)",
    )
}

fn no_config(dir: &Path) -> Error {
    let mut ggufs: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .collect();
    ggufs.sort();
    let hint = match ggufs.first() {
        Some(gguf) => format!("name the file: {}", gguf.display()),
        None if dir.join("adapter_config.json").is_file() => {
            "this is an adapter: merge it into its base model first (merge_and_unload)".to_owned()
        }
        None => "name a GGUF file, or a directory with config.json and *.safetensors".to_owned(),
    };
    Error::bad_input(format!("{}: no config.json, so no model's directory", dir.display())).with_hint(hint)
}

/// Reads a JSON file of at most `max` bytes.
///
/// # Errors
/// It cannot be read, is larger, or is not such JSON.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path, max: u64) -> Result<T> {
    let file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > max {
        return Err(Error::damaged_file(path, format!("larger than {max} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|e| Error::damaged_file(path, format!("damaged JSON: {e}")))
}
