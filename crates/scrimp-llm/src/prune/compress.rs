//! From a checkpoint to a compressed file: calibrate, prune, round and pack, layer by layer.

use super::{
    Calibration, Dense, Inputs, Job, Pruner, Rounding, Statistics,
    layer::DenseLayer,
    runner::{Machine, Runner},
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
    model::parts::Role,
};
use scrimp_kernels::{
    Tier,
    formats::packed::{WeightFormat, pack},
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

/// What is to be done.
#[derive(Debug)]
pub struct Options<'a> {
    /// Who chooses the weights that go.
    pub method: &'static dyn Pruner,
    /// How all matrices of all layers are stored.
    pub choice: Choice,
    /// The text that shows what inputs look like.
    pub calibration: &'a Calibration,
}

impl std::fmt::Debug for dyn Pruner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Bytes of the original's files.
    pub bytes_before: u64,
    /// Bytes of the compressed file.
    pub bytes_after: u64,
    /// Share of the layers' weights that are zero.
    pub sparsity: f64,
    /// Bits of all tensors for each of their weights.
    pub bits_per_weight: f64,
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
    let sparsity = options.choice.sparsity;
    if !(0.0..1.0).contains(&sparsity) {
        return Err(Error::bad_input_hint(
            format!("a sparsity of {sparsity} is not possible"),
            "give the share of weights that become zero: 0 or more, less than 1",
        ));
    }
    let config = checkpoint.config();
    let machine = Machine { pool, tier, config };
    let work = WorkDir::open(out, &plan(checkpoint, options))?;
    let Calibration { tokens, window } = options.calibration;
    let (first, mut runner) = match work.done(config.n_layers, tokens.len() * config.hidden_size) {
        Some((done, hidden)) => (done, Runner::from_hidden(machine, hidden, *window)),
        None => (0, Runner::embed(machine, checkpoint, tokens, *window)?),
    };
    let total = config.n_layers * Role::ALL.len();
    for index in first..config.n_layers {
        let what = format!("layer {} of {}", index + 1, config.n_layers);
        let mut done = index * Role::ALL.len();
        progress(Progress { done, total, what: &what });
        let packed = compress_layer(checkpoint, &mut runner, index, options, &mut || {
            done += 1;
            progress(Progress { done, total, what: &what });
        })?;
        let items = layer_items(checkpoint, index, &packed);
        work.store(index, &items, &BTreeMap::new(), runner.hidden())?;
    }
    progress(Progress { done: total, total, what: "writing the file" });
    let report = assemble(checkpoint, out, &work, options)?;
    work.remove();
    Ok(report)
}

/// Everything that decides what the result is.
fn plan(checkpoint: &Checkpoint, options: &Options<'_>) -> String {
    json!({
        "model": checkpoint.path(),
        "bytes": checkpoint.file_bytes(),
        "method": options.method.name(),
        "format": options.choice.format.name(),
        "sparsity": options.choice.sparsity,
        "calibration": options.calibration.fingerprint(),
        "scrimp": env!("CARGO_PKG_VERSION"),
    })
    .to_string()
}

/// A packed matrix.
struct Packed {
    name: String,
    encoding: Encoding,
    shape: Vec<usize>,
    bytes: Vec<u8>,
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
    let mut packed = Vec::with_capacity(Role::ALL.len());
    let mut inputs: Option<Inputs> = None;
    let wanted = wanted(options);
    runner.layer(&mut layer, index, &mut |layer, roles, x| {
        let known = inputs.get_or_insert_with(|| Inputs::new(layer.get(roles[0]).weight.cols, wanted));
        if let Some(x) = x {
            known.add(pool, x);
            return Ok(());
        }
        for &role in roles {
            let name = format!("blk.{index}.{}.weight", role.stem());
            let weight = layer.weight_mut(role);
            packed.push(compress_matrix(pool, name, weight, known, options.method, options.choice)?);
            done();
        }
        inputs = None;
        Ok(())
    })?;
    Ok(packed)
}

/// What has to be known of inputs.
fn wanted(options: &Options<'_>) -> Statistics {
    let Choice { format, sparsity } = options.choice;
    if sparsity == 0.0 && format == WeightFormat::Bf16 { Statistics::None } else { options.method.needs() }
}

/// Prunes and rounds a matrix, in place, and packs it.
fn compress_matrix(
    pool: &Pool,
    name: String,
    weight: &mut Dense,
    inputs: &Inputs,
    method: &dyn Pruner,
    choice: Choice,
) -> Result<Packed> {
    let mut rounding = Rounding::new(choice.format, weight.cols);
    if choice.sparsity > 0.0 || choice.format != WeightFormat::Bf16 {
        let rounding = &mut rounding;
        method.prune(Job { pool, weight, inputs, sparsity: choice.sparsity, rounding });
    }
    rounding.apply(pool, weight);
    let (rows, cols) = (weight.rows, weight.cols);
    let format = smaller(choice.format, weight);
    let bytes = pack(pool, format, rows, cols, &weight.data, rounding.scales())
        .map_err(|e| Error::bad_input(format!("tensor {name} cannot be {format}: {e}")))?;
    Ok(Packed { name, encoding: Encoding::Packed(format), shape: vec![rows, cols], bytes })
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
    let layers = (0..config.n_layers).map(|i| work.layer(i)).collect::<Result<Vec<_>>>()?;
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
        if let Some(tensor) = checkpoint.try_tensor(name) {
            parameters += tensor.shape.iter().product::<usize>();
            bytes += tensor.data.len();
            items.extend(as_stored(checkpoint, name, &tensor.shape));
        }
    }
    for layer in &layers {
        for entry in layer.entries() {
            let data = &layer.source()[entry.range.clone()];
            let n: usize = entry.shape.iter().product();
            if let Encoding::Packed(format) = entry.encoding {
                weights += n;
                zeros += n - stored_weights(format, entry.shape[0], entry.shape[1], data)?;
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
        "sparsity": options.choice.sparsity,
        "format": options.choice.format.name(),
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
    })
}

/// Weights of a packed matrix that are not zero.
fn stored_weights(format: WeightFormat, rows: usize, cols: usize, data: &[u8]) -> Result<usize> {
    use scrimp_kernels::formats::packed::PackedView;
    let view = PackedView::new(format, rows, cols, data).map_err(|e| Error::bad_input(e.to_string()))?;
    Ok(view.stored())
}
