//! Compressing a checkpoint to a file: calibrate, prune, round and pack, layer by layer.

use crate::{
    Budget, Calibration, Inputs, LayerConfig, LayerConfigs, Measured, Output, Pruner, Statistics,
    assemble::{assemble, extra_bytes, layer_items},
    budget::{Goal, Search},
    checkpoint_dir::CheckpointDir,
    layer::DenseLayer,
    layer_pass::{Visitor, run_layer},
    matrix::{MatrixOptions, compress_matrix},
    quantizing::output,
};
use scrimp_kernels::{
    Exec,
    quant::packed::{PackedView, WeightFormat},
};
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    load::{Encoding, compressed},
    model::{
        LayerRunner, LinearWeights,
        projections::{Projection, StoredMatrix, seven_matrices},
    },
};
use serde_json::json;
use std::{collections::BTreeMap, path::Path};

/// Options of [`compress`].
#[derive(Debug)]
pub struct Options<'a> {
    /// Chooses the weights that become zero.
    pub method: &'static dyn Pruner,
    /// How matrices are stored.
    pub budget: Budget,
    /// How the output matrix is stored.
    pub output: Output,
    /// The text whose activations are the inputs of the matrices.
    pub calibration: &'a Calibration,
}

/// The result of [`compress`].
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Bytes of the original's files.
    pub bytes_before: u64,
    /// Bytes of the compressed file.
    pub bytes_after: u64,
    /// Share of the layers' weights that are zero.
    pub sparsity: f64,
    /// Mean bits per weight over all tensors.
    pub bits_per_weight: f64,
    /// The measured formats of the output matrix. The last one is used if its divergence is within the limit.
    pub output: Vec<Measured>,
}

/// Progress of [`compress`].
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Finished matrices.
    pub done: usize,
    /// All matrices.
    pub total: usize,
    /// The current step.
    pub what: &'a str,
}

/// Compresses `checkpoint` to the file `out`. An interrupted run leaves a directory beside `out`, from which the next
/// run resumes.
///
/// # Errors
/// When options are out of range, the checkpoint is damaged or compressed already, or a file cannot be written.
pub fn compress(
    exec: Exec<'_>,
    checkpoint: &Checkpoint,
    out: &Path,
    options: &Options<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report> {
    check(checkpoint, out, &options.budget)?;
    let dir = CheckpointDir::open(out, &plan(checkpoint, options))?;
    let total = checkpoint.config().n_layers * Projection::ALL.len();
    let run = Run { exec, checkpoint, options, dir };
    if run.dir.part(OUTPUT).is_err() {
        progress(Progress { done: 0, total, what: "output matrix" });
        run.compress_output()?;
    }
    let embedding = embedding(&run.dir, exec)?;
    let configs = run.layer_configs(embedding.as_ref(), &mut |layer| {
        let what = format!("sensitivity of layer {} of {}", layer + 1, checkpoint.config().n_layers);
        progress(Progress { done: 0, total, what: &what });
    })?;
    run.compress_layers(embedding, &configs, progress)?;
    progress(Progress { done: total, total, what: "writing the file" });
    let report = assemble(checkpoint, out, &run.dir, options, &configs)?;
    run.dir.remove();
    Ok(report)
}

/// Checks the arguments of [`compress`].
fn check(checkpoint: &Checkpoint, out: &Path, budget: &Budget) -> Result<()> {
    seven_matrices(checkpoint.config())?;
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
    let given: Vec<LayerConfig> = match budget {
        Budget::Fixed(configs) => configs.layers.values().chain([&configs.all]).copied().collect(),
        Budget::BySensitivity(config) => vec![*config],
        Budget::Bits(_) | Budget::Size(_) => Vec::new(),
    };
    match given.iter().find(|config| !(0.0..1.0).contains(&config.sparsity)) {
        Some(config) => Err(Error::bad_input(format!("a sparsity of {} is not possible", config.sparsity))
            .with_hint("give the share of weights that become zero: 0 or more, less than 1")),
        None => Ok(()),
    }
}

/// A run of [`compress`], which stores finished parts in `dir`.
struct Run<'a> {
    exec: Exec<'a>,
    checkpoint: &'a Checkpoint,
    options: &'a Options<'a>,
    dir: CheckpointDir,
}

impl Run<'_> {
    /// Compresses and stores the output matrix.
    fn compress_output(&self) -> Result<()> {
        let Options { output, calibration, .. } = self.options;
        let (packed, measured) = output::compress(self.exec, self.checkpoint, *output, calibration)?;
        let items: Vec<_> = packed.iter().map(Packed::item).collect();
        let measured = json!(measured.iter().map(|m| (m.format.name(), m.bytes, m.kl)).collect::<Vec<_>>());
        self.dir.store(OUTPUT, &items, &BTreeMap::from([(MEASURED.to_owned(), measured.to_string())]))
    }

    /// The configurations of all layers: those of an earlier run, or new ones, which it stores.
    fn layer_configs(
        &self,
        embedding: Option<&LinearWeights>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<LayerConfigs> {
        if let Some(configs) = self.dir.layer_configs() {
            return Ok(configs);
        }
        let goal = match &self.options.budget {
            Budget::Fixed(configs) => {
                self.dir.store_layer_configs(configs)?;
                return Ok(configs.clone());
            }
            Budget::BySensitivity(config) => Goal::Sparsity(*config),
            Budget::Bits(_) | Budget::Size(_) => {
                let output = self.dir.part(OUTPUT)?;
                let compressed = output.entries().iter().map(|e| (e.name.as_str(), e.range.len())).collect();
                let Outside { bytes: fixed, parameters } = outside_layers(self.checkpoint, &compressed);
                let all = match self.options.budget {
                    Budget::Bits(bits) => bits * parameters as f64 / 8.0,
                    Budget::Size(bytes) => bytes as f64 - extra_bytes(self.checkpoint)? as f64,
                    _ => 0.0,
                };
                Goal::Bytes(for_layers(all, fixed))
            }
        };
        let Options { method, calibration, .. } = *self.options;
        let search = Search { exec: self.exec, checkpoint: self.checkpoint, embedding, method, calibration };
        let configs = search.choose(goal, progress)?;
        self.dir.store_layer_configs(&configs)?;
        Ok(configs)
    }

    /// Compresses and stores all layers that an earlier run has not stored.
    fn compress_layers(
        &self,
        embedding: Option<LinearWeights>,
        configs: &LayerConfigs,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let Self { exec, checkpoint, options, dir } = self;
        let config = checkpoint.config();
        let Calibration { tokens, window } = options.calibration;
        // If no layer needs statistics, no text runs through the model.
        let needs = |layer| statistics(options.method, configs.of(layer)) != Statistics::None;
        let tokens = if (0..config.n_layers).any(needs) { &tokens[..] } else { &[] };
        let (first, mut runner) = match dir.done(config.n_layers, tokens.len() * config.hidden_size) {
            Some((done, hidden)) => (done, LayerRunner::from_hidden(*exec, config, hidden, *window)),
            None => {
                let matrix = embedding.as_ref().map(|e| &e.weight);
                (0, LayerRunner::embed(*exec, checkpoint, matrix, tokens, *window)?)
            }
        };
        drop(embedding);
        let total = config.n_layers * Projection::ALL.len();
        for index in first..config.n_layers {
            let what = format!("layer {} of {}", index + 1, config.n_layers);
            let mut done = index * Projection::ALL.len();
            progress(Progress { done, total, what: &what });
            let mut layer = DenseLayer::read(checkpoint, exec.pool, index)?;
            let mut compressor = Compressor {
                exec: *exec,
                index,
                method: options.method,
                config: configs.of(index),
                inputs: None,
                packed: Vec::new(),
                done: &mut || {
                    done += 1;
                    progress(Progress { done, total, what: &what });
                },
            };
            run_layer(*exec, &mut runner, index, &mut layer, &mut compressor)?;
            let items = layer_items(checkpoint, index, &compressor.packed);
            dir.store(&layer_part(index), &items, &BTreeMap::new())?;
            dir.store_hidden(index + 1, runner.hidden())?;
        }
        Ok(())
    }
}

/// Name of the part with the output matrix in the checkpoint directory.
pub(crate) const OUTPUT: &str = "output";
/// Key of the part's metadata with the formats that were tried.
pub(crate) const MEASURED: &str = "scrimp.measured";

pub(crate) fn layer_part(index: usize) -> String {
    format!("layer-{index:04}")
}

/// The compressed embedding, if it is also the output matrix.
fn embedding(work: &CheckpointDir, exec: Exec<'_>) -> Result<Option<LinearWeights>> {
    let part = work.part(OUTPUT)?;
    for entry in part.entries() {
        if let (Encoding::Packed(format), "token_embd.weight") = (entry.encoding, entry.name.as_str()) {
            let data = &part.source()[entry.range.clone()];
            let view = PackedView::new(format, entry.shape[0], entry.shape[1], data)
                .map_err(|e| part.source().bad(e.to_string()))?;
            return LinearWeights::pack(exec.pool, &StoredMatrix::Packed(view)).map(Some);
        }
    }
    Ok(None)
}

/// All inputs of the result.
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

/// The tensors outside the layers' matrices.
pub(crate) struct Outside {
    /// Bytes of its tensors.
    pub(crate) bytes: usize,
    /// Weights of the whole model, the layers' included.
    pub(crate) parameters: usize,
}

/// Bytes and parameters outside the layers' matrices. `compressed` has the new sizes of some of these tensors.
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

/// The share of the available size that is planned for layers. The rest is a margin: final sizes differ slightly from
/// the sizes measured on fewer tokens.
pub(crate) const PLANNED: f64 = 0.995;

/// Bytes for the matrices of the layers in a file of `bytes`.
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

/// The statistics that `method` needs for `choice`.
fn statistics(method: &dyn Pruner, choice: LayerConfig) -> Statistics {
    let idle = choice.sparsity == 0.0 && choice.format.dense() == WeightFormat::Bf16;
    if idle { Statistics::None } else { method.needs() }
}

/// Compresses each matrix after the pass of its inputs.
struct Compressor<'a> {
    exec: Exec<'a>,
    index: usize,
    method: &'a dyn Pruner,
    config: LayerConfig,
    inputs: Option<Inputs>,
    packed: Vec<Packed>,
    done: &'a mut dyn FnMut(),
}

impl Visitor for Compressor<'_> {
    fn inputs(&mut self, _: &[Projection], cols: usize, x: &[f32]) -> Result<()> {
        let wanted = statistics(self.method, self.config);
        let inputs = self.inputs.get_or_insert_with(|| Inputs::new(cols, wanted));
        inputs.add(self.exec, x)
    }

    fn ready(&mut self, layer: &mut DenseLayer, projections: &[Projection]) -> Result<()> {
        let inputs = self.inputs.take();
        let Self { method, config, .. } = *self;
        for &projection in projections {
            let keep_zeros = layer.pruned_already(projection);
            let weight = layer.weight_mut(projection);
            let none = Inputs::new(weight.cols, Statistics::None);
            let inputs = inputs.as_ref().unwrap_or(&none);
            let name = format!("blk.{}.{}.weight", self.index, projection.stem());
            let options = MatrixOptions { method, inputs, config, keep_zeros };
            let (format, bytes) = compress_matrix(self.exec.pool, weight, &options)
                .map_err(|e| Error::bad_input(format!("tensor {name} cannot be {}: {e}", config.format)))?;
            let (encoding, shape) = (Encoding::Packed(format), vec![weight.rows, weight.cols]);
            self.packed.push(Packed { name, encoding, shape, bytes });
            (self.done)();
        }
        Ok(())
    }
}
