//! One layer of a checkpoint in the runtime's forward pass, with dense matrices that a visitor may change.
//!
//! [`LayerRunner`] passes the inputs of each matrix before it uses the matrix. Pruning therefore sees the inputs of the
//! pruned model ("true sequential" in the implementation of GPTQ).

use crate::layer::{Dense, DenseLayer, DenseLinear};
use scrimp_kernels::{
    DType, Exec,
    quant::packed::{DenseMatrix, FormatError, PackedView, WeightFormat, pack},
};
use scrimp_llm::{
    error::{Error, Result},
    model::{
        LayerHook, LayerRunner, LinearWeights,
        projections::{Projection, StoredMatrix},
    },
};

/// Receives the inputs of a layer's matrices, and may then change the matrices.
pub(crate) trait Visitor {
    /// The residual stream before the block that `projections` begin, `[tokens][hidden_size]`.
    fn stream(&mut self, _projections: &[Projection], _stream: &[f32]) {}

    /// A part of the inputs of `projections`, `[tokens][cols]`.
    ///
    /// # Errors
    /// An error ends the run.
    fn inputs(&mut self, projections: &[Projection], cols: usize, x: &[f32]) -> Result<()>;

    /// Called after the last inputs of `projections` and before the matrices are used.
    ///
    /// # Errors
    /// An error ends the run.
    fn ready(&mut self, layer: &mut DenseLayer, projections: &[Projection]) -> Result<()>;
}

/// Changes nothing.
pub(crate) struct Unchanged;

impl Visitor for Unchanged {
    fn inputs(&mut self, _: &[Projection], _: usize, _: &[f32]) -> Result<()> {
        Ok(())
    }

    fn ready(&mut self, _: &mut DenseLayer, _: &[Projection]) -> Result<()> {
        Ok(())
    }
}

/// Runs layer `index` over all windows of `runner`.
///
/// # Errors
/// Those of `visitor`, and when memory cannot be had.
pub(crate) fn run_layer(
    exec: Exec<'_>,
    runner: &mut LayerRunner<'_>,
    index: usize,
    layer: &mut DenseLayer,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    let norms = layer.norms.clone();
    runner.layer(&norms, index, &mut Hook { exec, layer, visitor })
}

struct Hook<'a> {
    exec: Exec<'a>,
    layer: &'a mut DenseLayer,
    visitor: &'a mut dyn Visitor,
}

impl LayerHook for Hook<'_> {
    fn stream(&mut self, projections: &[Projection], stream: &[f32]) {
        self.visitor.stream(projections, stream);
    }

    fn inputs(&mut self, projections: &[Projection], rows: &[f32]) -> Result<()> {
        self.visitor.inputs(projections, self.layer.get(projections[0]).weight.cols, rows)
    }

    fn complete(&mut self, projections: &[Projection]) -> Result<()> {
        self.visitor.ready(self.layer, projections)
    }

    /// The matrix in bf16, if the CPU multiplies bf16 faster than f32. The final model multiplies 16-bit formats in
    /// bf16, too.
    fn matrix(&mut self, projection: Projection) -> Result<LinearWeights> {
        let DenseLinear { weight: Dense { rows, cols, data }, bias } = self.layer.get(projection);
        let (rows, cols, bias) = (*rows, *cols, bias.clone());
        if self.exec.level.has_bf16_products() {
            let bad = |e: FormatError| Error::bad_input(format!("a matrix of the calibration run: {e}"));
            let bytes =
                pack(self.exec.pool, WeightFormat::Bf16, DenseMatrix { rows, cols, weights: data }, None)
                    .map_err(bad)?;
            let view = PackedView::new(WeightFormat::Bf16, rows, cols, &bytes).map_err(bad)?;
            return Ok(LinearWeights {
                bias,
                ..LinearWeights::pack(self.exec.pool, &StoredMatrix::Packed(view))?
            });
        }
        let stored = StoredMatrix::Rows { dtype: DType::F32, rows, cols, data: bytemuck::cast_slice(data) };
        Ok(LinearWeights { bias, ..LinearWeights::pack(self.exec.pool, &stored)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrimp_kernels::{Pool, SimdLevel};
    use scrimp_llm::{
        checkpoint::Checkpoint,
        model::{Model, RunOptions, rms_norm_rows},
    };
    use std::path::Path;

    struct Seen(Vec<(Projection, Option<usize>)>);

    impl Visitor for Seen {
        fn inputs(&mut self, roles: &[Projection], cols: usize, x: &[f32]) -> Result<()> {
            assert!(x.len().is_multiple_of(cols));
            self.0.push((roles[0], Some(x.len())));
            Ok(())
        }

        fn ready(&mut self, layer: &mut DenseLayer, roles: &[Projection]) -> Result<()> {
            assert!(roles.iter().all(|&r| layer.get(r).weight.cols == layer.get(roles[0]).weight.cols));
            self.0.push((roles[0], None));
            Ok(())
        }
    }

    /// The stages, with nothing changed in between, are the forward pass: every family, every tiny model.
    #[test]
    fn unchanged_weights_give_the_forward_pass() {
        let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tiny");
        for name in scrimp_testkit::TINY_MODELS {
            let path = testdata.join(name);
            let options = RunOptions { kv_format: "f32".parse().unwrap(), ..RunOptions::default() };
            let model = Model::load(Checkpoint::open(&path).unwrap(), &options).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let (config, vocab) = (checkpoint.config(), checkpoint.config().vocab_size);
            let window = config.context_length.min(40);
            let tokens: Vec<u32> = (0..2 * window).map(|i| ((i * 31 + 7) % vocab) as u32).collect();
            let pool = Pool::new(2).unwrap();
            // In f32.
            let exec = Exec { pool: &pool, level: SimdLevel::avx2().unwrap_or(SimdLevel::SCALAR) };
            let mut runner = LayerRunner::embed(exec, &checkpoint, None, &tokens, window).unwrap();
            let mut seen = Seen(Vec::new());
            for index in 0..config.n_layers {
                let mut layer = DenseLayer::read(&checkpoint, &pool, index).unwrap();
                run_layer(exec, &mut runner, index, &mut layer, &mut seen).unwrap();
            }
            // Two windows, then the moment of change, for each of four stages.
            assert_eq!(seen.0.len(), config.n_layers * 12);
            let width = Some(window * config.q_dim());
            assert_eq!(seen.0[3..6], [(Projection::O, width), (Projection::O, width), (Projection::O, None)]);

            let norm = scrimp_llm::model::projections::vector(&checkpoint, "output_norm.weight").unwrap();
            let x = rms_norm_rows(exec, config, &norm, runner.hidden());
            let tied = checkpoint.try_tensor("output.weight").is_none();
            let output = if tied { "token_embd.weight" } else { "output.weight" };
            let output =
                scrimp_llm::model::projections::stored_matrix(&checkpoint, output, &(0..vocab)).unwrap();
            let logits = LinearWeights::pack(&pool, &output).unwrap().apply(exec, &x);
            let mut session = model.session();
            for (w, tokens) in tokens.chunks(window).enumerate() {
                session.reset();
                session
                    .forward_each(tokens, &mut |t, want| {
                        let got = &logits[(w * window + t) * vocab..][..vocab];
                        for (i, (got, want)) in got.iter().zip(want).enumerate() {
                            let got = got * config.logit_scale;
                            let got = config.final_logit_softcap.map_or(got, |cap| cap * (got / cap).tanh());
                            assert!((got - want).abs() < 1e-3, "{name} {w} {t} {i}: {got} {want}");
                        }
                    })
                    .unwrap();
            }
        }
    }

    /// The same in bf16, where the CPU has that.
    #[test]
    fn a_run_in_bf16_differs_by_its_rounding() {
        let Some(level) = SimdLevel::supported().into_iter().rfind(|level| level.has_bf16_products()) else {
            eprintln!("SKIPPED: this CPU has no bf16 products");
            return;
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tiny/llama");
        let checkpoint = Checkpoint::open(&path).unwrap();
        let (pool, config) = (Pool::new(2).unwrap(), checkpoint.config());
        let tokens: Vec<u32> = (0..80).map(|i| ((i * 31 + 7) % config.vocab_size) as u32).collect();
        let run = |level| {
            let exec = Exec { pool: &pool, level };
            let mut runner = LayerRunner::embed(exec, &checkpoint, None, &tokens, 40).unwrap();
            for index in 0..config.n_layers {
                let mut layer = DenseLayer::read(&checkpoint, &pool, index).unwrap();
                run_layer(exec, &mut runner, index, &mut layer, &mut Unchanged).unwrap();
            }
            runner.into_hidden()
        };
        let (got, want) = (run(level), run(SimdLevel::SCALAR));
        let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let error = squares(&mut got.iter().zip(&want).map(|(a, b)| a - b));
        let size = squares(&mut want.iter().copied());
        assert!(error > 0.0 && error < 0.02 * size, "{error} of {size}");
    }
}
