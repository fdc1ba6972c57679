//! From a checkpoint to a compressed file: calibrate, prune, round and pack, layer by layer.

use super::{
    Calibration, Dense, Inputs, Job, Pruner, Rounding, Statistics,
    layer::DenseLayer,
    output::{self, Measured, Output},
    runner::{self, Machine, Runner, Visitor},
    workdir::WorkDir,
};
use crate::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    families,
    load::{
        Encoding,
        compressed::{GGUF_HEADER, Item, write},
        side_files::SIDE_FILES,
    },
    model::parts::{Role, StoredMatrix},
};
use scrimp_kernels::{
    Tier,
    formats::packed::{PackedView, WeightFormat, pack},
    threads::Pool,
};
use serde_json::json;
use std::{collections::BTreeMap, path::Path};

/// How a matrix is to be stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The format; the sparse one is taken where it is smaller.
    pub format: WeightFormat,
    /// Share of the weights that become zero, in `[0, 1)`.
    pub sparsity: f64,
}

/// How the matrices of all layers are to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Choices {
    /// Those that are not named.
    pub all: Choice,
    /// By layer.
    pub layers: BTreeMap<usize, Choice>,
}

impl Choices {
    /// The same for all.
    pub fn uniform(format: WeightFormat, sparsity: f64) -> Self {
        Self { all: Choice { format, sparsity }, layers: BTreeMap::new() }
    }

    /// How the matrices of layer `index` are stored.
    pub fn of(&self, index: usize) -> Choice {
        self.layers.get(&index).copied().unwrap_or(self.all)
    }

    fn describe(&self) -> serde_json::Value {
        let one = |c: &Choice| json!([c.format.name(), c.sparsity]);
        let layers: Vec<_> = self.layers.iter().map(|(i, c)| json!([i, one(c)])).collect();
        json!({"all": one(&self.all), "layers": layers})
    }
}

/// What is to be done.
#[derive(Debug)]
pub struct Options<'a> {
    /// Who chooses the weights that go.
    pub method: &'static dyn Pruner,
    /// How matrices are stored.
    pub choices: Choices,
    /// How the output matrix is stored.
    pub output: Output,
    /// The text that shows what inputs look like.
    pub calibration: &'a Calibration,
}

impl std::fmt::Debug for dyn Pruner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Bytes of the original's files.
    pub bytes_before: u64,
    /// Bytes of the compressed file.
    pub bytes_after: u64,
    /// Share of the layers' weights that are zero.
    pub sparsity: f64,
    /// Bits of all tensors for each of their weights.
    pub bits_per_weight: f64,
    /// Formats of the output matrix that were tried; the last was taken if it is allowed.
    pub output: Vec<Measured>,
}

/// How far the work is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Matrices that are done.
    pub done: usize,
    /// Matrices in all.
    pub total: usize,
    /// What is being done.
    pub what: &'a str,
}

/// Compresses `checkpoint` to the file `out`. An interrupted run leaves a directory beside it, with which the next one
/// goes on.
///
/// # Errors
/// When options are out of range, the checkpoint is damaged or compressed already, or a file cannot be written.
pub fn compress(
    checkpoint: &Checkpoint,
    out: &Path,
    pool: &Pool,
    tier: Tier,
    options: &Options<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report> {
    if checkpoint.history().is_some() {
        return Err(Error::unsupported(
            format!("{} is compressed already", checkpoint.path().display()),
            "compress the original",
        ));
    }
    if out.extension().is_none_or(|e| e != "safetensors") {
        return Err(Error::bad_input_hint(
            format!("{}: a compressed model is a safetensors file", out.display()),
            format!("name it {}", out.with_extension("safetensors").display()),
        ));
    }
    for choice in options.choices.layers.values().chain([&options.choices.all]) {
        if !(0.0..1.0).contains(&choice.sparsity) {
            return Err(Error::bad_input_hint(
                format!("a sparsity of {} is not possible", choice.sparsity),
                "give the share of weights that become zero: 0 or more, less than 1",
            ));
        }
    }
    let config = checkpoint.config();
    let machine = Machine { pool, tier, config };
    let work = WorkDir::open(out, &plan(checkpoint, options))?;
    let Calibration { tokens, window } = options.calibration;
    let total = config.n_layers * Role::ALL.len();
    if work.part(OUTPUT).is_err() {
        progress(Progress { done: 0, total, what: "output matrix" });
        let (packed, measured) = output::compress(machine, checkpoint, options.output, options.calibration)?;
        let items: Vec<_> = packed.iter().map(Packed::item).collect();
        let measured = json!(measured.iter().map(|m| (m.format.name(), m.bytes, m.kl)).collect::<Vec<_>>());
        work.store(OUTPUT, &items, &BTreeMap::from([(MEASURED.to_owned(), measured.to_string())]))?;
    }
    let embedding = embedding(&work, machine)?;
    let (first, mut runner) = match work.done(config.n_layers, tokens.len() * config.hidden_size) {
        Some((done, hidden)) => (done, Runner::from_hidden(machine, hidden, *window)),
        None => (0, Runner::embed(machine, checkpoint, embedding.as_ref().map(|e| &e.matrix), tokens, *window)?),
    };
    drop(embedding);
    for index in first..config.n_layers {
        let what = format!("layer {} of {}", index + 1, config.n_layers);
        let mut done = index * Role::ALL.len();
        progress(Progress { done, total, what: &what });
        let packed = compress_layer(checkpoint, &mut runner, index, options, &mut || {
            done += 1;
            progress(Progress { done, total, what: &what });
        })?;
        let items = layer_items(checkpoint, index, &packed);
        work.store(&layer_part(index), &items, &BTreeMap::new())?;
        work.store_hidden(index + 1, runner.hidden())?;
    }
    progress(Progress { done: total, total, what: "writing the file" });
    let report = assemble(checkpoint, out, &work, options)?;
    work.remove();
    Ok(report)
}

/// Names of parts in the work directory.
const OUTPUT: &str = "output";
/// Key of the part's metadata with the formats that were tried.
const MEASURED: &str = "scrimp.measured";

fn layer_part(index: usize) -> String {
    format!("layer-{index:04}")
}

/// The compressed embedding, where it is the output matrix and was compressed with it.
fn embedding(work: &WorkDir, machine: Machine<'_>) -> Result<Option<runner::Packed>> {
    let part = work.part(OUTPUT)?;
    for entry in part.entries() {
        if let (Encoding::Packed(format), "token_embd.weight") = (entry.encoding, entry.name.as_str()) {
            let data = &part.source()[entry.range.clone()];
            let view = PackedView::new(format, entry.shape[0], entry.shape[1], data)
                .map_err(|e| part.source().bad(e.to_string()))?;
            return runner::Packed::new(machine, &StoredMatrix::Packed(view)).map(Some);
        }
    }
    Ok(None)
}

/// Everything that decides what the result is.
fn plan(checkpoint: &Checkpoint, options: &Options<'_>) -> String {
    json!({
        "model": checkpoint.path(),
        "bytes": checkpoint.file_bytes(),
        "method": options.method.name(),
        "choices": options.choices.describe(),
        "output": format!("{:?}", options.output),
        "calibration": options.calibration.fingerprint(),
        "scrimp": env!("CARGO_PKG_VERSION"),
    })
    .to_string()
}

/// A packed matrix.
pub(super) struct Packed {
    pub(super) name: String,
    pub(super) encoding: Encoding,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

impl Packed {
    fn item(&self) -> Item<'_> {
        Item::Tensor {
            name: self.name.clone(),
            encoding: self.encoding,
            shape: self.shape.clone(),
            data: &self.bytes,
        }
    }
}

/// Runs the calibration text through layer `index`, and compresses its matrices on the way.
fn compress_layer(
    checkpoint: &Checkpoint,
    runner: &mut Runner<'_>,
    index: usize,
    options: &Options<'_>,
    done: &mut dyn FnMut(),
) -> Result<Vec<Packed>> {
    let pool = runner.pool();
    let mut layer = DenseLayer::read(checkpoint, pool, index)?;
    let choice = options.choices.of(index);
    let mut visitor =
        Compressor { pool, index, method: options.method, choice, inputs: None, packed: Vec::new(), done };
    runner.layer(&mut layer, index, &mut visitor)?;
    Ok(visitor.packed)
}

/// Compresses matrices when all that they get has been seen.
struct Compressor<'a> {
    pool: &'a Pool,
    index: usize,
    method: &'a dyn Pruner,
    choice: Choice,
    inputs: Option<Inputs>,
    packed: Vec<Packed>,
    done: &'a mut dyn FnMut(),
}

impl Visitor for Compressor<'_> {
    fn inputs(&mut self, _: &[Role], cols: usize, x: &[f32]) {
        let Choice { format, sparsity } = self.choice;
        let idle = sparsity == 0.0 && format.dense() == WeightFormat::Bf16;
        let wanted = if idle { Statistics::None } else { self.method.needs() };
        self.inputs.get_or_insert_with(|| Inputs::new(cols, wanted)).add(self.pool, x);
    }

    fn ready(&mut self, layer: &mut DenseLayer, roles: &[Role]) -> Result<()> {
        let Some(inputs) = self.inputs.take() else { return Ok(()) };
        for &role in roles {
            let keep_zeros = layer.pruned_already(role);
            let weight = layer.weight_mut(role);
            let rounding =
                round_matrix(self.pool, weight, &inputs, self.method, self.choice, keep_zeros);
            let name = format!("blk.{}.{}.weight", self.index, role.stem());
            let (rows, cols) = (weight.rows, weight.cols);
            let format = smaller(self.choice.format, weight);
            let bytes = pack(self.pool, format, rows, cols, &weight.data, rounding.scales())
                .map_err(|e| Error::bad_input(format!("tensor {name} cannot be {format}: {e}")))?;
            let encoding = Encoding::Packed(format);
            self.packed.push(Packed { name, encoding, shape: vec![rows, cols], bytes });
            (self.done)();
        }
        Ok(())
    }
}

/// Prunes and rounds a matrix, in place.
pub(super) fn round_matrix(
    pool: &Pool,
    weight: &mut Dense,
    inputs: &Inputs,
    method: &dyn Pruner,
    Choice { format, sparsity }: Choice,
    keep_zeros: bool,
) -> Rounding {
    let mut rounding = Rounding::new(format, weight.cols);
    if sparsity > 0.0 || rounding.group().is_some() {
        let rounding = &mut rounding;
        method.prune(Job { pool, weight, inputs, sparsity, keep_zeros, rounding });
    }
    rounding.apply(pool, weight);
    rounding
}

/// `format`, or its sparse form where that takes fewer bytes.
fn smaller(format: WeightFormat, weight: &Dense) -> WeightFormat {
    let bits = match format.dense() {
        WeightFormat::Bf16 => 16,
        WeightFormat::Int8 => 8,
        _ => 4,
    };
    // The bitmap costs a bit per weight.
    if weight.zeros() * bits > weight.data.len() { format.sparse() } else { format.dense() }
}

/// A layer's matrices and what else it has.
fn layer_items<'a>(checkpoint: &'a Checkpoint, index: usize, packed: &'a [Packed]) -> Vec<Item<'a>> {
    let prefix = format!("blk.{index}.");
    let vectors = checkpoint
        .tensors()
        .filter(|(name, tensor)| name.starts_with(&prefix) && tensor.shape.len() == 1)
        .map(|(name, tensor)| as_stored(checkpoint, name, &tensor.shape));
    packed.iter().map(Packed::item).chain(vectors.flatten()).collect()
}

/// A tensor as the original has it.
fn as_stored<'a>(checkpoint: &'a Checkpoint, name: &str, shape: &[usize]) -> Option<Item<'a>> {
    let (encoding, data) = checkpoint.stored(name)?;
    Some(Item::Tensor { name: name.to_owned(), encoding, shape: shape.to_vec(), data })
}

/// Puts layers, embedding, output and tokenizer together.
fn assemble(checkpoint: &Checkpoint, out: &Path, work: &WorkDir, options: &Options<'_>) -> Result<Report> {
    let config = checkpoint.config();
    let output = work.part(OUTPUT)?;
    let measured: Vec<(String, usize, f64)> =
        output.text(MEASURED).ok().and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
    let layers = (0..config.n_layers).map(|i| work.part(&layer_part(i))).collect::<Result<Vec<_>>>()?;
    let mut items = Vec::new();
    let mut stored = Vec::new();
    let tokenizer;
    if let Some(metadata) = checkpoint.gguf_metadata() {
        tokenizer = metadata.excerpt(|key| key.starts_with("tokenizer.") || key == "general.architecture");
        items.push(Item::File { name: GGUF_HEADER.to_owned(), data: &tokenizer });
    } else if let Some(side) = checkpoint.side_files() {
        for name in SIDE_FILES {
            if let Some(bytes) = side.read(name)? {
                stored.push((name, bytes));
            }
        }
        items.extend(stored.iter().map(|(name, data)| Item::File { name: (*name).to_owned(), data }));
    }
    let (mut weights, mut zeros, mut parameters, mut bytes) = (0, 0, 0, 0);
    for name in ["token_embd.weight", "output_norm.weight", "output.weight"] {
        let tensor = checkpoint.try_tensor(name).filter(|_| !output.entries().iter().any(|e| e.name == name));
        if let Some(tensor) = tensor {
            parameters += tensor.shape.iter().product::<usize>();
            bytes += tensor.data.len();
            items.extend(as_stored(checkpoint, name, &tensor.shape));
        }
    }
    for part in [&output].into_iter().chain(&layers) {
        for entry in part.entries() {
            let data = &part.source()[entry.range.clone()];
            let n: usize = entry.shape.iter().product();
            if let (Encoding::Packed(format), true) = (entry.encoding, entry.name.starts_with("blk.")) {
                let view = PackedView::new(format, entry.shape[0], entry.shape[1], data)
                    .map_err(|e| part.source().bad(e.to_string()))?;
                weights += n;
                zeros += n - view.stored();
            }
            parameters += n;
            bytes += data.len();
            items.push(Item::Tensor {
                name: entry.name.clone(),
                encoding: entry.encoding,
                shape: entry.shape.clone(),
                data,
            });
        }
    }
    let history = json!({
        "model": config.name,
        "method": options.method.name(),
        "choices": options.choices.describe(),
        "calibration_tokens": options.calibration.tokens.len(),
        "scrimp": env!("CARGO_PKG_VERSION"),
    });
    let metadata = BTreeMap::from([
        ("scrimp.config".to_owned(), families::stored::to_json(config)),
        ("scrimp.history".to_owned(), history.to_string()),
    ]);
    write(out, &metadata, &items, &mut |_| ())?;
    let bytes_after = std::fs::metadata(out).map_err(|e| Error::io(out, e))?.len();
    Ok(Report {
        bytes_before: checkpoint.file_bytes(),
        bytes_after,
        sparsity: zeros as f64 / weights.max(1) as f64,
        bits_per_weight: 8.0 * bytes as f64 / parameters.max(1) as f64,
        output: measured
            .iter()
            .filter_map(|(format, bytes, kl)| {
                Some(Measured { format: format.parse().ok()?, bytes: *bytes, kl: *kl })
            })
            .collect(),
    })
}

