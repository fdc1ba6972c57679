//! A model on disk: its configuration, and its tensors under GGUF's names, for all file formats.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use scrimp_kernels::DType;

use crate::{
    chat::{ChatTemplate, chat_template_from_gguf, chat_template_from_side_files},
    config::ModelConfig,
    error::{Error, Result},
    families::{self, Family, GgufKeys, HfConfig, Need, TensorSpec},
    load::{
        CompressedFile, Encoding, GgufFile, GgufMetadata, GgufTensor, HfDir, SafetensorsFile, SideFiles,
        Source, compressed::GGUF_HEADER, hf_dir, hf_quantization, safetensors::SafeDType,
    },
    tokenizer::Tokenizer,
};

/// One stored tensor, borrowed from the memory map.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// How `data` is stored.
    pub encoding: Encoding,
    /// Dimensions, outermost first: a linear layer is `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// The bytes, as in the file. Not necessarily aligned.
    pub data: &'a [u8],
}

/// A model on disk. Its files stay mapped, and nothing is copied.
///
/// [`Checkpoint::open`] has checked that every tensor of the configuration exists and has the right shape, so
/// [`Checkpoint::tensor`] finds it.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: ModelConfig,
    files: Vec<Arc<Source>>,
    tensors: Vec<Stored>,
    by_name: HashMap<String, usize>,
    gguf: Option<GgufFile>,
    side: Option<SideFiles>,
    /// How a compressed file was made, JSON.
    history: Option<String>,
    unused: Unused,
}

/// Numbers of tensors that scrimp does not use.
#[derive(Debug, Clone, Copy, Default)]
struct Unused {
    /// Of vision and audio towers.
    towers: usize,
    /// Of layers that predict further tokens.
    predictors: usize,
}

/// The content of a model's files before it is checked.
struct Found {
    config: ModelConfig,
    /// The tensors that the configuration implies.
    specs: Vec<TensorSpec>,
    files: Vec<Arc<Source>>,
    tensors: Vec<Stored>,
    /// Types of tensors that cannot be read.
    other_types: HashMap<String, SafeDType>,
}

#[derive(Debug)]
struct Stored {
    name: String,
    encoding: Encoding,
    shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
}

impl Checkpoint {
    /// Opens a GGUF file (any of its parts, if it is split), a Hugging Face directory with `config.json` and safetensors files, or a file that
    /// `scrimp compress` wrote.
    ///
    /// # Errors
    /// When files are missing, damaged or of an unsupported kind, or a tensor is missing or has another shape than
    /// the configuration says.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if kind.is_dir() { Self::open_hf(path) } else { Self::from_source(Source::open(path)?) }
    }

    /// Opens a GGUF file that is mapped, or in memory, already.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_source(source: Source) -> Result<Self> {
        let path = &source.path().to_owned();
        if path.extension().is_some_and(|e| e == "safetensors") && !source.starts_with(b"GGUF") {
            let file = SafetensorsFile::from_source(source)?;
            if CompressedFile::is_one(&file) {
                return Self::open_compressed(path, &CompressedFile::new(file)?);
            }
            return Err(Error::bad_input(format!(
                "{}: a single safetensors file without its configuration",
                path.display()
            ))
            .with_hint("name the directory that holds it and config.json"));
        }
        refuse_other_files(path, &source)?;
        let mut shards = GgufFile::from_source(source)?.with_shards()?;
        let metadata = shards[0].metadata();
        let key = "general.architecture";
        let architecture = metadata.str(key)?.ok_or_else(|| metadata.missing(key))?;
        let family = families::by_architecture(architecture)?;
        let config = family.gguf_config(&GgufKeys::new(&shards, architecture))?;
        let stored = |(file, shard): (usize, &GgufFile)| {
            let stored = |t: &GgufTensor| Stored {
                name: gguf_name(family, &t.name),
                encoding: Encoding::Rows(t.dtype),
                shape: gguf_shape(&t.name, &t.shape),
                file,
                range: t.range.clone(),
            };
            shard.tensors().iter().map(stored).collect::<Vec<_>>()
        };
        let tensors = shards.iter().enumerate().flat_map(stored).collect();
        let files = shards.iter().map(|shard| Arc::clone(shard.shared_source())).collect();
        let specs = families::expected_tensors(family, &config).collect();
        let checkpoint =
            Self::check(path, family, Found { config, specs, files, tensors, other_types: HashMap::new() })?;
        let n_layers = checkpoint.config.n_layers;
        let layer = |name: &str| name.strip_prefix("blk.")?.split('.').next()?.parse::<usize>().ok();
        let predictors =
            checkpoint.tensor_names().filter(|name| layer(name).is_some_and(|i| i >= n_layers)).count();
        let unused = Unused { predictors, towers: 0 };
        Ok(Self { gguf: Some(shards.swap_remove(0)), unused, ..checkpoint })
    }

    fn open_compressed(path: &Path, file: &CompressedFile) -> Result<Self> {
        let config = families::stored::from_json(file.text("scrimp.config")?)
            .map_err(|what| file.source().bad(format!("scrimp.config is damaged: {what}")))?;
        let family = families::by_architecture(config.family)?;
        let tensors = file.entries().iter().map(|entry| Stored {
            name: entry.name.clone(),
            encoding: entry.encoding,
            shape: entry.shape.clone(),
            file: 0,
            range: entry.range.clone(),
        });
        let tensors = tensors.collect();
        let files = vec![Arc::clone(file.source())];
        let specs =
            families::expected_tensors(family, &config).flat_map(|spec| spec.unfused(&config)).collect();
        let mut checkpoint =
            Self::check(path, family, Found { config, specs, files, tensors, other_types: HashMap::new() })?;
        if checkpoint.try_tensor("output.weight").is_some() {
            checkpoint.embedding()?;
        }
        if let Some(header) = file.file(GGUF_HEADER) {
            checkpoint.gguf = Some(GgufFile::from_source(Source::from_bytes(path, header.to_vec()))?);
        } else {
            let read = |name: &str| file.file(name).map(|bytes| (name.to_owned(), bytes.to_vec()));
            let files: BTreeMap<_, _> = file.file_names().filter_map(read).collect();
            checkpoint.side = Some(SideFiles::embedded(path, files));
        }
        checkpoint.history = Some(file.text("scrimp.history").unwrap_or("{}").to_owned());
        Ok(checkpoint)
    }

    fn open_hf(dir: &Path) -> Result<Self> {
        let HfDir { config_path, config: json, shards } = HfDir::open(dir)?;
        let hf = HfConfig::new(&config_path, &json)?;
        hf_quantization::check(hf)?;
        let model_type = hf.text("model_type")?.ok_or_else(|| hf.bad("\"model_type\" is missing"))?;
        let family = families::by_model_type(model_type)?;
        let mut config = family.hf_config(&hf)?;
        if config.name.is_empty() {
            config.name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        }
        let text = hf.object("text_config")?.unwrap_or(hf);
        let tied = match hf.bool("tie_word_embeddings")? {
            Some(tied) => tied,
            None => text.bool("tie_word_embeddings")?.unwrap_or(family.tied_by_default()),
        };

        let mut files = Vec::with_capacity(shards.len());
        let mut tensors = Vec::new();
        // Tensors of unsupported types. They are an error only if the model needs one of them.
        let mut other_types = HashMap::new();
        let mut unused = Unused::default();
        for shard in shards {
            let file = files.len();
            files.push(Arc::clone(shard.source()));
            for tensor in shard.tensors() {
                let matrix = hf_quantization::scaled_matrix(&tensor.name);
                let Some(name) = families::gguf_tensor_name(family, matrix.unwrap_or(&tensor.name)) else {
                    unused.count(&tensor.name);
                    continue;
                };
                let name = if matrix.is_some() { format!("{name}_scale") } else { name };
                if tied && name == "output.weight" {
                    continue;
                }
                let bytes = name.ends_with("_blocks.weight") || name.ends_with("_scales.weight");
                let encoding = match tensor.dtype {
                    SafeDType::F8_E4M3 => Some(Encoding::Fp8),
                    SafeDType::U8 if bytes => Some(Encoding::Bytes),
                    dtype => dtype.dtype().map(Encoding::Rows),
                };
                match encoding {
                    Some(encoding) => tensors.push(Stored {
                        shape: gguf_shape(&name, &tensor.shape),
                        name,
                        encoding,
                        file,
                        range: tensor.range.clone(),
                    }),
                    None => drop(other_types.insert(name, tensor.dtype)),
                }
            }
        }
        let specs = families::expected_tensors(family, &config).collect();
        let mut checkpoint = Self::check(dir, family, Found { config, specs, files, tensors, other_types })?;
        checkpoint.side = Some(SideFiles::in_dir(dir));
        checkpoint.unused = unused;
        // An embedding model has no use for an output matrix.
        let embeds = dir.join("modules.json").is_file();
        if !tied && !embeds && checkpoint.try_tensor("output.weight").is_none() {
            return Err(missing(
                dir,
                "output.weight (lm_head.weight), which the configuration says is not tied,",
            ));
        }
        Ok(checkpoint)
    }

    /// Indexes the tensors and compares them with those that the configuration implies.
    fn check(
        path: &Path,
        family: &dyn Family,
        Found { config, specs, files, tensors, other_types }: Found,
    ) -> Result<Self> {
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (i, tensor) in tensors.iter().enumerate() {
            if by_name.insert(tensor.name.clone(), i).is_some() {
                return Err(Error::damaged_file(path, format!("two tensors mean {}", tensor.name)));
            }
        }
        let has = |name: &str| by_name.contains_key(name) || other_types.contains_key(name);
        for spec in specs.into_iter().flat_map(|spec| spec.stored_as(has)) {
            if let Some(dtype) = other_types.get(&spec.name) {
                return Err(Error::unsupported(
                    format!("{}: tensor {} is of type {dtype:?}", path.display(), spec.name),
                    "weights of type F32, F16 and BF16 are read",
                ));
            }
            let Some(&i) = by_name.get(&spec.name) else {
                let other = |other: &str| {
                    let layer = spec.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
                    layer.is_some_and(|(layer, _)| has(&format!("blk.{layer}.{other}")))
                };
                let required = match spec.need {
                    Need::Required => true,
                    Need::Optional => false,
                    Need::Unless(name) => !other(name),
                };
                if required {
                    return Err(missing(path, &spec.name));
                }
                continue;
            };
            let tensor = &tensors[i];
            if tensor.shape != spec.shape {
                return Err(Error::damaged_file(
                    path,
                    format!(
                        "tensor {} has shape {:?}, but the configuration says {:?}",
                        spec.name, tensor.shape, spec.shape
                    ),
                ));
            }
        }
        let checkpoint = Self {
            path: path.to_owned(),
            config,
            files,
            tensors,
            by_name,
            gguf: None,
            side: None,
            history: None,
            unused: Unused::default(),
        };
        checkpoint.refuse_unknown_biases(family)?;
        Ok(checkpoint)
    }

    /// Rejects biases that the family does not have, and factors on matrices: ignoring one would change results. Other
    /// extra tensors are harmless.
    fn refuse_unknown_biases(&self, family: &dyn Family) -> Result<()> {
        let layers = (0..self.config.n_layers).flat_map(|i| family.tensors_of_layer(&self.config, i));
        let known: HashSet<String> = layers.map(|spec| spec.name).collect();
        for tensor in &self.tensors {
            let in_layer = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            let name = in_layer.map_or(tensor.name.as_str(), |(_, name)| name);
            if name.ends_with(".scale") {
                // Beside NVFP4 matrices: ignoring the factor would change results.
                return Err(Error::unsupported(
                    format!("{}: {} is a factor on a whole matrix", self.path.display(), tensor.name),
                    "use a file of another type, such as MXFP4 or Q4_K",
                ));
            }
            if name.ends_with(".bias") && !known.contains(name) {
                return Err(Error::unsupported(
                    format!("{}: {} is not supported", self.path.display(), tensor.name),
                    format!("models of family {} have no such bias", family.name()),
                ));
            }
        }
        Ok(())
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tensor with GGUF's name `name`.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.try_tensor(name).ok_or_else(|| missing(&self.path, name))
    }

    /// The tensor with GGUF's name `name`, if there is one.
    pub fn try_tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.by_name.get(name).map(|&i| self.view(&self.tensors[i]))
    }

    /// How the tensor `name` is stored, and its bytes.
    pub fn stored(&self, name: &str) -> Option<(Encoding, &[u8])> {
        self.by_name.get(name).map(|&i| {
            let tensor = &self.tensors[i];
            (tensor.encoding, &self.files[tensor.file][tensor.range.clone()])
        })
    }

    /// The embedding for lookups in the file: its type and its rows, one after another.
    ///
    /// # Errors
    /// It is packed. Only an embedding that is also the output matrix may be packed.
    pub fn embedding(&self) -> Result<(DType, &[u8])> {
        self.table("token_embd.weight")
    }

    /// The table `name` for lookups in the file: its type and its rows, one after another.
    ///
    /// # Errors
    /// There is no such table, or it is packed.
    pub fn table(&self, name: &str) -> Result<(DType, &[u8])> {
        let tensor = self.tensor(name)?;
        let what = || Error::damaged_file(&self.path, format!("table {name} is packed"));
        Ok((tensor.encoding.rows().ok_or_else(what)?, tensor.data))
    }

    /// GGUF's names of all tensors, in the files' order.
    pub fn tensor_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// Name and view of every tensor, in the files' order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, TensorView<'_>)> {
        self.tensors.iter().map(|t| (t.name.as_str(), self.view(t)))
    }

    /// Drops the resident pages of a tensor, except for pages that it shares with a neighbor. Its bytes can still be
    /// read.
    pub fn release(&self, name: &str) {
        if let Some(&i) = self.by_name.get(name) {
            let tensor = &self.tensors[i];
            self.files[tensor.file].release(tensor.range.clone());
        }
    }

    /// As [`Checkpoint::release`] for `part` of a tensor's bytes. A `part` outside the files is ignored.
    pub fn release_part(&self, name: &str, part: &[u8]) {
        if let Some(&i) = self.by_name.get(name) {
            let tensor = &self.tensors[i];
            let file = &self.files[tensor.file];
            let whole = &file[tensor.range.clone()];
            let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
            if start.checked_add(part.len()).is_some_and(|end| end <= whole.len()) {
                let start = tensor.range.start + start;
                file.release(start..start + part.len());
            }
        }
    }

    /// Drops all resident pages of the files (their bytes can still be read).
    pub fn release_all(&self) {
        self.files.iter().for_each(|file| file.release(0..file.len()));
    }

    /// Drops the resident pages of the GGUF header with the vocabulary. Call it after the tokenizer is built.
    pub fn release_header(&self) {
        if let Some(gguf) = &self.gguf {
            gguf.source().release(0..gguf.header_bytes());
        }
    }

    /// The parts of the model that scrimp does not use, in words; `None`: it uses all.
    pub fn unused(&self) -> Option<String> {
        let Unused { towers, predictors } = self.unused;
        let part = |n: usize, what: &str| (n > 0).then(|| format!("{n} tensors {what}"));
        let parts =
            [part(towers, "of vision or audio towers"), part(predictors, "of multi-token prediction")];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| format!("{} are not used", parts.join(" and ")))
    }

    /// Bytes of the model's files together.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len() as u64).sum()
    }

    /// The GGUF file's metadata; `None` for a Hugging Face directory.
    pub fn gguf_metadata(&self) -> Option<&GgufMetadata> {
        self.gguf.as_ref().map(GgufFile::metadata)
    }

    /// The Hugging Face directory; `None` for a file.
    pub fn hf_dir(&self) -> Option<&Path> {
        (self.gguf.is_none() && self.history.is_none()).then_some(&self.path)
    }

    /// Files of a Hugging Face model beside the weights; `None` for models with GGUF metadata.
    pub fn side_files(&self) -> Option<&SideFiles> {
        self.side.as_ref()
    }

    /// How a file of `scrimp compress` was made, as JSON; `None` for other files.
    pub fn history(&self) -> Option<&str> {
        self.history.as_deref()
    }

    /// The tokenizer that comes with the model.
    ///
    /// # Errors
    /// The tokenizer is missing, damaged or of an unknown kind.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match (&self.gguf, &self.side) {
            (Some(gguf), _) => Tokenizer::from_gguf(gguf.metadata()),
            (None, Some(side)) => Tokenizer::from_side_files(side),
            (None, None) => Err(Error::damaged_file(&self.path, "it holds no tokenizer")),
        }
    }

    /// The chat template that comes with the model; `None` for a base model.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn chat_template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        match (&self.gguf, &self.side) {
            (Some(gguf), _) => chat_template_from_gguf(gguf.metadata(), tokenizer),
            (None, Some(side)) => chat_template_from_side_files(side),
            (None, None) => Ok(None),
        }
    }

    /// The path given to [`Checkpoint::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn view(&self, tensor: &Stored) -> TensorView<'_> {
        TensorView {
            encoding: tensor.encoding,
            shape: tensor.shape.clone(),
            data: &self.files[tensor.file][tensor.range.clone()],
        }
    }
}

impl Unused {
    /// Counts the tensor `name` of a Hugging Face file, which is no part of the decoder.
    fn count(&mut self, name: &str) {
        let name = name.strip_prefix("model.").unwrap_or(name);
        let is_of = |parts: &[&str]| parts.iter().any(|part| name.starts_with(part));
        self.towers += usize::from(is_of(&["visual.", "vision_tower.", "vision_model.", "audio_tower."]));
        self.predictors += usize::from(is_of(&["mtp."]));
    }
}

/// The name of a GGUF file's tensor in [`Family::layer_tensors`], or among the other tensors.
fn gguf_name(family: &dyn Family, name: &str) -> String {
    match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, name)) => format!("blk.{layer}.{}", family.gguf_alias(name).unwrap_or(name)),
        None => family.gguf_alias(name).unwrap_or(name).to_owned(),
    }
}

/// The shape of a tensor as [`Family::layer_tensors`] has it: convolutions and vectors have no dimension of 1, and a norm
/// of groups of heads is a vector.
fn gguf_shape(name: &str, shape: &[usize]) -> Vec<usize> {
    if name.ends_with("ssm_norm.weight") {
        return vec![shape.iter().product()];
    }
    let squeezed = name.ends_with("conv1d.weight")
        || name.ends_with(".ssm_a")
        || name.ends_with(".ssm_d")
        || name.ends_with("shortconv.conv.weight")
        || name.ends_with("ffn_gate_inp_shexp.weight");
    shape.iter().copied().filter(|&len| !squeezed || len != 1).collect()
}

fn missing(path: &Path, name: &str) -> Error {
    Error::damaged_file(path, format!("tensor {name} is missing"))
}

/// Errors for common files that are not models.
fn refuse_other_files(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(b"GGUF") {
        return Ok(());
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    match extension {
        "bin" | "pt" | "pth" | "ckpt" if !bytes.is_empty() => Err(hf_dir::pickle(path)),
        _ if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02") => Err(hf_dir::pickle(path)),
        _ if bytes.starts_with(b"tjgg") || bytes.starts_with(b"lmgg") || bytes.starts_with(b"fmgg") => {
            Err(Error::unsupported(
                format!("{}: a GGML file from before GGUF", path.display()),
                "use a GGUF file of the same model",
            ))
        }
        _ => Err(Error::damaged_file(path, "neither a GGUF file nor a model's directory")),
    }
}
