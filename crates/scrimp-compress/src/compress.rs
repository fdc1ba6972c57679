//! Compressing a checkpoint to a file: calibrate, prune, round and pack, layer by layer.

use crate::{
    Budget, Calibration, Format, Inputs, MatrixConfig, MatrixConfigs, Output, Pruner, Statistics,
    assemble::{assemble, extra_bytes, layer_items},
    budget::{Goal, Search},
    checkpoint_dir::CheckpointDir,
    drift::{Drift, Reference},
    layer::{DenseLayer, original},
    layer_pass::{Visitor, run_layer},
    matrix::{MatrixOptions, compress_matrix},
    quantizing::output,
};
use scrimp_kernels::{Exec, quant::packed::PackedView};
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
    let configs = run.matrix_configs(&mut |layer| {
        let what = format!("sensitivity of layer {} of {}", layer + 1, checkpoint.config().n_layers);
        progress(Progress { done: 0, total, what: &what });
    })?;
    if run.dir.part(OUTPUT_PART).is_err() {
        progress(Progress { done: 0, total, what: "output matrix" });
        run.compress_output(&configs)?;
    }
    let embedding = embedding(&run.dir, exec)?;
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
    let given: Vec<MatrixConfig> = match budget {
        Budget::Fixed(configs) => configs.matrices.values().chain([&configs.all]).copied().collect(),
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
    fn compress_output(&self, configs: &MatrixConfigs) -> Result<()> {
        let Options { output, calibration, .. } = self.options;
        let packed =
            output::compress(self.exec, self.checkpoint, configs.output.unwrap_or(*output), calibration)?;
        let items: Vec<_> = packed.iter().map(Packed::item).collect();
        self.dir.store(OUTPUT_PART, &items, &BTreeMap::new())
    }

    /// The configurations of all layers: those of an earlier run, or new ones, which it stores.
    fn matrix_configs(&self, progress: &mut dyn FnMut(usize)) -> Result<MatrixConfigs> {
        if let Some(configs) = self.dir.matrix_configs() {
            return Ok(configs);
        }
        let goal = match &self.options.budget {
            Budget::Fixed(configs) => {
                self.dir.store_matrix_configs(configs)?;
                return Ok(configs.clone());
            }
            Budget::BySensitivity(config) => Goal::Sparsity(*config),
            Budget::Bits(bits) => Goal::Bytes(bits * parameters(self.checkpoint) as f64 / 8.0),
            Budget::Size(bytes) => Goal::Bytes(*bytes as f64 - extra_bytes(self.checkpoint)? as f64),
        };
        let Options { method, calibration, output, .. } = *self.options;
        let Self { exec, checkpoint, .. } = *self;
        let (goal, outputs) = match goal {
            Goal::Bytes(bytes) => {
                let bytes = bytes - outside_matrices(checkpoint) as f64;
                if output == Output::Measured {
                    (Goal::Bytes(bytes), Some(output::candidates(exec, checkpoint, calibration)?))
                } else {
                    (Goal::Bytes(bytes - output::bytes(exec, checkpoint, output)? as f64), None)
                }
            }
            Goal::Sparsity(_) => (goal, None),
        };
        let search = Search { exec, checkpoint, output: outputs.as_deref(), method, calibration };
        let configs = search.choose(goal, progress)?;
        self.dir.store_matrix_configs(&configs)?;
        Ok(configs)
    }

    /// Compresses and stores all layers that an earlier run has not stored.
    fn compress_layers(
        &self,
        embedding: Option<LinearWeights>,
        configs: &MatrixConfigs,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let Self { exec, checkpoint, options, dir } = self;
        let config = checkpoint.config();
        let Calibration { tokens, window } = options.calibration;
        // If no layer needs statistics, no text runs through the model.
        let needs = |layer| {
            let needs = |p| statistics(options.method, configs.of(layer, p)) != Statistics::None;
            Projection::ALL.into_iter().any(needs)
        };
        let tokens = if (0..config.n_layers).any(needs) { &tokens[..] } else { &[] };
        // The streams of the compressed and of the original model.
        let len = tokens.len() * config.hidden_size;
        let (first, [mut runner, mut original]) = match dir.done(config.n_layers, 2 * len) {
            Some((done, mut hidden)) => {
                let original = hidden.split_off(len);
                (done, [hidden, original].map(|h| LayerRunner::from_hidden(*exec, config, h, *window)))
            }
            None => {
                let embed = |matrix| LayerRunner::embed(*exec, checkpoint, matrix, tokens, *window);
                (0, [embed(embedding.as_ref().map(|e| &e.weight))?, embed(None)?])
            }
        };
        drop(embedding);
        let total = config.n_layers * Projection::ALL.len();
        for index in first..config.n_layers {
            let what = format!("layer {} of {}", index + 1, config.n_layers);
            let mut done = index * Projection::ALL.len();
            progress(Progress { done, total, what: &what });
            let mut layer = DenseLayer::read(checkpoint, exec.pool, index)?;
            let reference = if options.method.needs() == Statistics::Gram {
                Reference::run(*exec, &mut original, index, &mut layer)?
            } else {
                Reference::default()
            };
            let mut compressor = Compressor {
                run: self,
                index,
                configs,
                inputs: None,
                drift: Drift::new(config, reference),
                packed: Vec::new(),
                done: &mut || {
                    done += 1;
                    progress(Progress { done, total, what: &what });
                },
            };
            run_layer(*exec, &mut runner, index, &mut layer, &mut compressor)?;
            let items = layer_items(checkpoint, index, &compressor.packed);
            dir.store(&layer_part(index), &items, &BTreeMap::new())?;
            dir.store_hidden(index + 1, &[runner.hidden(), original.hidden()])?;
        }
        Ok(())
    }
}

/// Name of the part with the output matrix in the checkpoint directory.
pub(crate) const OUTPUT_PART: &str = "output";

pub(crate) fn layer_part(index: usize) -> String {
    format!("layer-{index:04}")
}

/// The compressed embedding, if it is also the output matrix.
fn embedding(work: &CheckpointDir, exec: Exec<'_>) -> Result<Option<LinearWeights>> {
    let part = work.part(OUTPUT_PART)?;
    for entry in part.entries() {
        if entry.name == EMBEDDING {
            let data = &part.source()[entry.range.clone()];
            return linear(exec, entry.encoding, &entry.shape, data).map(Some);
        }
    }
    Ok(None)
}

/// A matrix in memory as the runtime uses it.
///
/// # Errors
/// When the bytes do not fit the shape.
pub(crate) fn linear(
    exec: Exec<'_>,
    encoding: Encoding,
    shape: &[usize],
    data: &[u8],
) -> Result<LinearWeights> {
    let bad = |why: String| Error::bad_input(format!("a compressed matrix: {why}"));
    let &[rows, cols] = shape else { return Err(bad(format!("shape {shape:?}"))) };
    match encoding {
        Encoding::Packed(format) => {
            let view = PackedView::new(format, rows, cols, data).map_err(|e| bad(e.to_string()))?;
            LinearWeights::pack(exec.pool, &StoredMatrix::Packed(view))
        }
        Encoding::Rows(dtype) => {
            LinearWeights::pack(exec.pool, &StoredMatrix::Rows { dtype, rows, cols, data })
        }
        Encoding::Bytes | Encoding::Fp8 => Err(bad(format!("encoding {encoding}"))),
    }
}

/// Name of the embedding.
pub(crate) const EMBEDDING: &str = "token_embd.weight";

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

/// Bytes of the vectors, which are unchanged.
pub(crate) fn outside_matrices(checkpoint: &Checkpoint) -> usize {
    let vectors = checkpoint.tensors().filter(|(_, tensor)| tensor.shape.len() == 1);
    vectors.map(|(_, tensor)| tensor.data.len()).sum()
}

/// Weights of the whole model.
fn parameters(checkpoint: &Checkpoint) -> usize {
    checkpoint.tensors().map(|(_, tensor)| tensor.shape.iter().product::<usize>()).sum()
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
fn statistics(method: &dyn Pruner, choice: MatrixConfig) -> Statistics {
    let idle = choice.sparsity == 0.0 && matches!(choice.format, Format::BF16 | Format::Keep);
    if idle { Statistics::None } else { method.needs() }
}

/// Compresses each matrix after the pass of its inputs.
struct Compressor<'a> {
    run: &'a Run<'a>,
    index: usize,
    configs: &'a MatrixConfigs,
    inputs: Option<Inputs>,
    drift: Drift<'a>,
    packed: Vec<Packed>,
    done: &'a mut dyn FnMut(),
}

impl Visitor for Compressor<'_> {
    fn stream(&mut self, _: &[Projection], stream: &[f32]) {
        self.drift.stream(stream);
    }

    fn inputs(&mut self, projections: &[Projection], cols: usize, x: &[f32]) -> Result<()> {
        let needs = |&p: &Projection| statistics(self.run.options.method, self.configs.of(self.index, p));
        let wanted = projections.iter().map(needs).max().unwrap_or(Statistics::None);
        let inputs = self.inputs.get_or_insert_with(|| Inputs::new(cols, wanted));
        if wanted == Statistics::Gram {
            self.drift.add(self.run.exec.pool, projections, cols, x);
        }
        inputs.add(self.run.exec, x)
    }

    fn ready(&mut self, layer: &mut DenseLayer, projections: &[Projection]) -> Result<()> {
        let inputs = self.inputs.take();
        let Run { exec, checkpoint, options, .. } = self.run;
        for &projection in projections {
            let config = self.configs.of(self.index, projection);
            let name = format!("blk.{}.{}.weight", self.index, projection.stem());
            let kept = original(checkpoint, self.index, projection).filter(|_| config.format == Format::Keep);
            if let Some((encoding, shape, bytes)) = kept {
                let (shape, bytes) = (shape.to_vec(), bytes.to_vec());
                self.packed.push(Packed { name, encoding, shape, bytes });
                (self.done)();
                continue;
            }
            let keep_zeros = layer.pruned_already(projection);
            if let (Some(inputs), false) = (&inputs, keep_zeros) {
                self.drift.fit(exec.pool, layer, projection, inputs);
            }
            let weight = layer.weight_mut(projection);
            let none = Inputs::new(weight.cols, Statistics::None);
            let inputs = inputs.as_ref().unwrap_or(&none);
            let options = MatrixOptions { method: options.method, inputs, config, keep_zeros };
            let (encoding, bytes) = compress_matrix(exec.pool, weight, &options)
                .map_err(|e| Error::bad_input(format!("tensor {name} cannot be {}: {e}", config.format)))?;
            let shape = vec![weight.rows, weight.cols];
            self.packed.push(Packed { name, encoding, shape, bytes });
            (self.done)();
        }
        self.drift.finish();
        Ok(())
    }
}
