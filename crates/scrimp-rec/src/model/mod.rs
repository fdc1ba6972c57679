//! DLRM (Naumov et al., arXiv 1906.00091): numbers through a bottom MLP, ids through an encoder, their pairwise products
//! through a top MLP to the logit of a click.
//!
//! ```text
//! b = bottom(numbers)                      [dim]; none without numeric columns
//! v = encoder(ids)                         [vectors, dim]
//! dot:    logit = top([b, <x_i, x_j> for j < i])     x = b and the vectors
//! concat: logit = top([b, v])
//! ```
//!
//! Small baselines are the same thing with less of it: logistic regression is `concat` with one-dimensional vectors and
//! no hidden layers, a factorization machine `dot` without hidden layers (with a weight per pair of features).

mod file;
mod mlp;

pub use mlp::Mlp;

use crate::{
    Error, Result,
    data::Batch,
    encoders::{self, Encoder, EncoderConfig, Exec},
    schema::Schema,
};
use mlp::sized;
use scrimp_kernels::embedding::{MAX_VECTORS, Optimizer, Vectors, pairs, pairs_backward};
use serde::{Deserialize, Serialize};

/// How vectors meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interaction {
    /// All pairs' dot products.
    Dot,
    /// Side by side.
    Concat,
}

/// All that a model's shape depends on; part of the model file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// What rows consist of.
    pub schema: Schema,
    /// The encoder.
    pub encoder: EncoderConfig,
    /// How vectors meet.
    pub interaction: Interaction,
    /// Hidden layers of the bottom MLP; its output has the encoder's dimension.
    pub bottom: Vec<usize>,
    /// Hidden layers of the top MLP.
    pub top: Vec<usize>,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Distinct ids times dimension times 4: what a full table would take.
    pub full_embedding_bytes: u64,
}

/// How a step changes the parameters.
#[derive(Debug, Clone, Copy)]
pub struct StepOptions {
    /// For the embeddings.
    pub embedding: Optimizer,
    /// Learning rate of the dense layers (Adam).
    pub dense_lr: f32,
}

/// A model: predicts, and learns.
pub struct Model {
    config: ModelConfig,
    bottom: Option<Mlp>,
    encoder: Box<dyn Encoder>,
    top: Mlp,
    /// Steps of training so far.
    steps: u64,
    s: Scratch,
}

#[derive(Default)]
struct Scratch {
    /// Vectors of the encoder.
    v: Vec<f32>,
    /// Inputs of the top MLP.
    z: Vec<f32>,
    dz: Vec<f32>,
    dv: Vec<f32>,
    db: Vec<f32>,
    dlogit: Vec<f32>,
}

/// `1 / (1 + e^-x)`
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Calls `body(row, values)` for each row of `width` values, on all threads.
fn each_row(exec: Exec<'_>, data: &mut [f32], width: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
    const ROWS: usize = 64;
    exec.pool.chunks(data, ROWS * width, |unit, data| {
        for (i, row) in data.chunks_exact_mut(width).enumerate() {
            body(unit * ROWS + i, row);
        }
    });
}

impl Model {
    /// A fresh model. `keys` are the ids of an encoder that knows ids ([`Encoder::keys`]).
    ///
    /// # Errors
    /// When the configuration makes no sense or the memory cannot be had.
    pub fn new(config: ModelConfig, keys: &[u64]) -> Result<Self> {
        let dim = config.encoder.dim;
        let numeric = config.schema.n_numeric();
        if config.encoder.features != config.schema.n_categorical() {
            return Err(Error::bad_input(format!(
                "the encoder has {} features, the schema {}",
                config.encoder.features,
                config.schema.n_categorical()
            )));
        }
        if config.bottom.iter().chain(&config.top).any(|&n| n == 0 || n > 65536) {
            return Err(Error::bad_input("layers have 1 to 65536 outputs"));
        }
        let encoder = encoders::build(&config.encoder, keys)?;
        let bottom = if numeric > 0 {
            let sizes: Vec<usize> =
                [numeric].into_iter().chain(config.bottom.iter().copied()).chain([dim]).collect();
            Some(Mlp::new(&sizes, true, config.seed ^ 0xb0)?)
        } else {
            None
        };
        let vectors = encoder.vectors() + usize::from(bottom.is_some());
        if vectors > MAX_VECTORS {
            return Err(Error::bad_input(format!("{vectors} features: {MAX_VECTORS} are the most")));
        }
        let inputs = Self::top_inputs(config.interaction, vectors, dim, bottom.is_some());
        let sizes: Vec<usize> = [inputs].into_iter().chain(config.top.iter().copied()).chain([1]).collect();
        let top = Mlp::new(&sizes, false, config.seed ^ 0x70)?;
        Ok(Self { config, bottom, encoder, top, steps: 0, s: Scratch::default() })
    }

    fn top_inputs(interaction: Interaction, vectors: usize, dim: usize, bottom: bool) -> usize {
        match interaction {
            Interaction::Concat => vectors * dim,
            Interaction::Dot => vectors * (vectors - 1) / 2 + if bottom { dim } else { 0 },
        }
    }

    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What rows consist of.
    pub fn schema(&self) -> &Schema {
        &self.config.schema
    }

    /// The encoder.
    pub fn encoder(&self) -> &dyn Encoder {
        &*self.encoder
    }

    /// Bytes of the embeddings as they are stored.
    pub fn embedding_bytes(&self) -> u64 {
        self.encoder.bytes() as u64
    }

    /// Stores the embeddings as they are used after training; the model can then no longer learn.
    pub fn quantize(&mut self) {
        self.encoder.quantize();
    }

    /// To be called between two passes over the training data.
    pub fn between_epochs(&mut self, exec: Exec<'_>) {
        self.encoder.between_epochs(exec);
    }

    /// Number of vectors and of inputs of the top MLP.
    fn sizes(&self) -> (usize, usize) {
        let vectors = self.encoder.vectors() + usize::from(self.bottom.is_some());
        let dim = self.config.encoder.dim;
        (vectors, Self::top_inputs(self.config.interaction, vectors, dim, self.bottom.is_some()))
    }

    fn check(&self, batch: &Batch) {
        let rows = batch.rows();
        assert_eq!(batch.ids.len(), rows * self.config.encoder.features);
        assert_eq!(batch.numeric.len(), rows * self.config.schema.n_numeric());
    }

    /// Logits of the rows of `batch`, into `logits`.
    ///
    /// # Panics
    /// When the batch has another shape than the schema says.
    pub fn logits(&mut self, exec: Exec<'_>, batch: &Batch, logits: &mut Vec<f32>) {
        self.check(batch);
        logits.clear();
        logits.extend_from_slice(self.forward(exec, batch));
    }

    /// Probabilities of the rows of `batch`.
    ///
    /// # Panics
    /// As [`Model::logits`].
    pub fn predict(&mut self, exec: Exec<'_>, batch: &Batch, probabilities: &mut Vec<f32>) {
        self.logits(exec, batch, probabilities);
        for p in probabilities {
            *p = sigmoid(*p);
        }
    }

    fn forward(&mut self, exec: Exec<'_>, batch: &Batch) -> &[f32] {
        let rows = batch.rows();
        let dim = self.config.encoder.dim;
        let (_, inputs) = self.sizes();
        let others = self.encoder.vectors();
        let per = others * dim;
        let v = sized(&mut self.s.v, rows * per);
        self.encoder.forward(exec, &batch.ids, v);
        let b = match &mut self.bottom {
            Some(bottom) => bottom.forward(exec, &batch.numeric, rows),
            None => &[],
        };
        let (v, z) = (&*v, sized(&mut self.s.z, rows * inputs));
        let head = if b.is_empty() { 0 } else { dim };
        if self.config.interaction == Interaction::Dot {
            pairs(exec.pool, exec.level, &Vectors { head: b, tail: v, others, dim }, z, inputs, head);
        }
        let concat = self.config.interaction == Interaction::Concat;
        each_row(exec, z, inputs, |row, z| {
            let (first, rest) = z.split_at_mut(head);
            first.copy_from_slice(&b[row * head..(row + 1) * head]);
            if concat {
                rest.copy_from_slice(&v[row * per..(row + 1) * per]);
            }
        });
        self.top.forward(exec, z, rows)
    }

    /// Learns from `batch`; returns the sum of its rows' log losses before the step.
    ///
    /// # Panics
    /// As [`Model::logits`], or after [`Model::quantize`].
    pub fn step(&mut self, exec: Exec<'_>, batch: &Batch, options: StepOptions) -> f64 {
        self.check(batch);
        let rows = batch.rows();
        if rows == 0 {
            return 0.0;
        }
        let dim = self.config.encoder.dim;
        let (_, inputs) = self.sizes();
        let mut dlogit = std::mem::take(&mut self.s.dlogit);
        dlogit.clear();
        let mut loss = 0.0;
        for (&x, &y) in self.forward(exec, batch).iter().zip(&batch.labels) {
            dlogit.push((sigmoid(x) - y) / rows as f32);
            // log(1 + e^x) - y x, without overflow
            loss += f64::from(x.max(0.0) - y * x + (-x.abs()).exp().ln_1p());
        }
        self.steps += 1;
        let lr = options.dense_lr;
        let Scratch { v, z, dz, dv, db, .. } = &mut self.s;
        let dz = sized(dz, rows * inputs);
        self.top.backward(exec, &z[..rows * inputs], rows, &dlogit, Some(dz), lr, self.steps);
        let dz = &*dz;
        let head = if self.bottom.is_some() { dim } else { 0 };
        let db = sized(db, rows * head);
        if head > 0 {
            each_row(exec, db, head, |row, db| db.copy_from_slice(&dz[row * inputs..][..head]));
        }
        let others = self.encoder.vectors();
        let per = others * dim;
        let dv = sized(dv, rows * per);
        match self.config.interaction {
            Interaction::Concat => {
                each_row(exec, dv, per, |row, dv| dv.copy_from_slice(&dz[row * inputs + head..][..per]));
            }
            Interaction::Dot => {
                let b = self.bottom.as_ref().map_or(&[][..], |bottom| bottom.outputs(rows));
                let x = Vectors { head: b, tail: &v[..rows * per], others, dim };
                pairs_backward(exec.pool, exec.level, &x, dz, inputs, head, db, dv);
            }
        }
        self.encoder.backward(exec, &batch.ids, dv, options.embedding);
        if let Some(bottom) = &mut self.bottom {
            bottom.backward(exec, &batch.numeric, rows, db, None, lr, self.steps);
        }
        self.s.dlogit = dlogit;
        loss
    }
}
