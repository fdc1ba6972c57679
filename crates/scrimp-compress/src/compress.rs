//! From a checkpoint to a compressed file: calibrate, prune, round and pack, layer by layer.

use crate::{
    Budget, Calibration, Inputs, LayerConfig, LayerConfigs, Measured, Output, Pruner, Statistics,
    assemble::{assemble, extra_bytes, layer_items},
    budget::{self, Goal},
    checkpoint_dir::CheckpointDir,
    layer::DenseLayer,
    matrix::compress_matrix,
    quantizing::output,
    runner::{self, Machine, Runner, Visitor},
};
use scrimp_kernels::{
    Exec, Pool, SimdLevel,
    quant::packed::{PackedView, WeightFormat},
};
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    load::{Encoding, compressed},
    model::projections::{Projection, StoredMatrix},
};
use serde_json::json;
use std::{collections::BTreeMap, path::Path};

/// What is to be done.
#[derive(Debug)]
pub struct Options<'a> {
    /// Who chooses the weights that go.
    pub method: &'static dyn Pruner,
    /// How matrices are stored.
    pub budget: Budget,
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
    level: SimdLevel,
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
        return Err(Error::bad_input(format!("{}: a compressed model is a safetensors file", out.display()))
            .with_hint(format!("name it {}", out.with_extension("safetensors").display())));
    }
    let asked: Vec<LayerConfig> = match &options.budget {
        Budget::Fixed(choices) => choices.layers.values().chain([&choices.all]).copied().collect(),
        Budget::BySensitivity(choice) => vec![*choice],
        Budget::Bits(_) | Budget::Size(_) => Vec::new(),
    };
    for choice in asked {
        if !(0.0..1.0).contains(&choice.sparsity) {
            return Err(Error::bad_input(format!("a sparsity of {} is not possible", choice.sparsity))
                .with_hint("give the share of weights that become zero: 0 or more, less than 1"));
        }
    }
    let config = checkpoint.config();
    let machine = Machine { pool, level, config };
    let work = CheckpointDir::open(out, &plan(checkpoint, options))?;
    let Calibration { tokens, window } = options.calibration;
    let total = config.n_layers * Projection::ALL.len();
    if work.part(OUTPUT).is_err() {
        progress(Progress { done: 0, total, what: "output matrix" });
        let (packed, measured) = output::compress(machine, checkpoint, options.output, options.calibration)?;
        let items: Vec<_> = packed.iter().map(Packed::item).collect();
        let measured = json!(measured.iter().map(|m| (m.format.name(), m.bytes, m.kl)).collect::<Vec<_>>());
        work.store(OUTPUT, &items, &BTreeMap::from([(MEASURED.to_owned(), measured.to_string())]))?;
    }
    let embedding = embedding(&work, machine)?;
    let choices = match work.choices() {
        Some(choices) => choices,
        None => {
            let choices = decide(machine, checkpoint, &work, embedding.as_ref(), options, &mut |layer| {
                let what = format!("sensitivity of layer {} of {}", layer + 1, config.n_layers);
                progress(Progress { done: 0, total, what: &what });
            })?;
            work.store_choices(&choices)?;
            choices
        }
    };
    // Where nobody asks for inputs, no text runs through the model.
    let asks = |layer| statistics(options.method, choices.of(layer)) != Statistics::None;
    let tokens = if (0..config.n_layers).any(asks) { &tokens[..] } else { &[] };
    let (first, mut runner) = match work.done(config.n_layers, tokens.len() * config.hidden_size) {
        Some((done, hidden)) => (done, Runner::from_hidden(machine, hidden, *window)),
        None => {
            (0, Runner::embed(machine, checkpoint, embedding.as_ref().map(|e| &e.matrix), tokens, *window)?)
        }
    };
    drop(embedding);
    for index in first..config.n_layers {
        let what = format!("layer {} of {}", index + 1, config.n_layers);
        let mut done = index * Projection::ALL.len();
        progress(Progress { done, total, what: &what });
        let choice = choices.of(index);
        let packed = compress_layer(checkpoint, &mut runner, index, options.method, choice, &mut || {
            done += 1;
            progress(Progress { done, total, what: &what });
        })?;
        let items = layer_items(checkpoint, index, &packed);
        work.store(&layer_part(index), &items, &BTreeMap::new())?;
        work.store_hidden(index + 1, runner.hidden())?;
    }
    progress(Progress { done: total, total, what: "writing the file" });
    let report = assemble(checkpoint, out, &work, options, &choices)?;
    work.remove();
    Ok(report)
}

/// Names of parts in the work directory.
pub(crate) const OUTPUT: &str = "output";
/// Key of the part's metadata with the formats that were tried.
pub(crate) const MEASURED: &str = "scrimp.measured";

pub(crate) fn layer_part(index: usize) -> String {
    format!("layer-{index:04}")
}

/// The compressed embedding, where it is the output matrix and was compressed with it.
fn embedding(work: &CheckpointDir, machine: Machine<'_>) -> Result<Option<runner::Packed>> {
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
        "budget": format!("{:?}", options.budget),
        "output": format!("{:?}", options.output),
        "calibration": options.calibration.fingerprint(),
        "scrimp": env!("CARGO_PKG_VERSION"),
    })
    .to_string()
}

/// How matrices are stored, measured where that is asked for.
fn decide(
    machine: Machine<'_>,
    checkpoint: &Checkpoint,
    work: &CheckpointDir,
    embedding: Option<&runner::Packed>,
    options: &Options<'_>,
    progress: &mut dyn FnMut(usize),
) -> Result<LayerConfigs> {
    let goal = match &options.budget {
        Budget::Fixed(choices) => return Ok(choices.clone()),
        Budget::BySensitivity(choice) => Goal::Sparsity(*choice),
        Budget::Bits(_) | Budget::Size(_) => {
            let output = work.part(OUTPUT)?;
            let compressed = output.entries().iter().map(|e| (e.name.as_str(), e.range.len())).collect();
            let Outside { bytes: fixed, parameters } = outside_layers(checkpoint, &compressed);
            let all = match options.budget {
                Budget::Bits(bits) => bits * parameters as f64 / 8.0,
                Budget::Size(bytes) => bytes as f64 - extra_bytes(checkpoint)? as f64,
                _ => 0.0,
            };
            Goal::Bytes(for_layers(all, fixed))
        }
    };
    budget::choose(machine, checkpoint, embedding, options.method, options.calibration, goal, progress)
}

/// What does not belong to a layer's matrices.
pub(crate) struct Outside {
    /// Bytes of its tensors.
    pub(crate) bytes: usize,
    /// Weights of the whole model, the layers' included.
    pub(crate) parameters: usize,
}

/// Sizes of what is not in the layers' matrices, some tensors of it `compressed` to so many bytes.
pub(crate) fn outside_layers(checkpoint: &Checkpoint, compressed: &BTreeMap<&str, usize>) -> Outside {
    let mut outside = Outside { bytes: 0, parameters: 0 };
    for (name, tensor) in checkpoint.tensors() {
        outside.parameters += tensor.shape.iter().product::<usize>();
        let in_layer = name.starts_with("blk.") && tensor.shape.len() == 2;
        outside.bytes += match compressed.get(name) {
            Some(&bytes) => bytes,
            None if in_layer => 0,
            None => tensor.data.len(),
        };
    }
    outside
}

/// Share of their room that layers are planned for: they may differ a little from what was measured on fewer tokens.
pub(crate) const PLANNED: f64 = 0.995;

/// What is left of a file of `bytes` for the matrices of the layers.
pub(crate) fn for_layers(bytes: f64, outside: usize) -> u64 {
    ((bytes - outside as f64) * PLANNED).max(0.0) as u64
}

/// A packed matrix.
pub(crate) struct Packed {
    pub(crate) name: String,
    pub(crate) encoding: Encoding,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Packed {
    pub(crate) fn item(&self) -> compressed::Item<'_> {
        compressed::Item::Tensor {
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
    method: &dyn Pruner,
    choice: LayerConfig,
    done: &mut dyn FnMut(),
) -> Result<Vec<Packed>> {
    let Machine { pool, level, .. } = runner.machine();
    let mut layer = DenseLayer::read(checkpoint, pool, index)?;
    let mut visitor =
        Compressor { pool, level, index, method, choice, inputs: None, packed: Vec::new(), done };
    runner.layer(&mut layer, index, &mut visitor)?;
    Ok(visitor.packed)
}

/// What `method` has to know of the inputs of a matrix that becomes `choice`.
fn statistics(method: &dyn Pruner, choice: LayerConfig) -> Statistics {
    let idle = choice.sparsity == 0.0 && choice.format.dense() == WeightFormat::Bf16;
    if idle { Statistics::None } else { method.needs() }
}

/// Compresses matrices when all that they get has been seen.
struct Compressor<'a> {
    pool: &'a Pool,
    level: SimdLevel,
    index: usize,
    method: &'a dyn Pruner,
    choice: LayerConfig,
    inputs: Option<Inputs>,
    packed: Vec<Packed>,
    done: &'a mut dyn FnMut(),
}

impl Visitor for Compressor<'_> {
    fn inputs(&mut self, _: &[Projection], cols: usize, x: &[f32]) -> Result<()> {
        let wanted = statistics(self.method, self.choice);
        let inputs = self.inputs.get_or_insert_with(|| Inputs::new(cols, wanted));
        inputs.add(Exec { pool: self.pool, level: self.level }, x)
    }

    fn ready(&mut self, layer: &mut DenseLayer, roles: &[Projection]) -> Result<()> {
        let inputs = self.inputs.take();
        for &role in roles {
            let keep_zeros = layer.pruned_already(role);
            let weight = layer.weight_mut(role);
            let none = Inputs::new(weight.cols, Statistics::None);
            let inputs = inputs.as_ref().unwrap_or(&none);
            let name = format!("blk.{}.{}.weight", self.index, role.stem());
            let (format, bytes) =
                compress_matrix(self.pool, weight, inputs, self.method, self.choice, keep_zeros).map_err(
                    |e| Error::bad_input(format!("tensor {name} cannot be {}: {e}", self.choice.format)),
                )?;
            let (encoding, shape) = (Encoding::Packed(format), vec![weight.rows, weight.cols]);
            self.packed.push(Packed { name, encoding, shape, bytes });
            (self.done)();
        }
        Ok(())
    }
}
