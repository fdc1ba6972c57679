//! DLRM (Naumov et al., arXiv 1906.00091), in the four parts of TorchRec's `DLRM`.
//!
//! ```text
//! d = DenseArch(numbers)                   [dim]; absent without numeric columns
//! s = SparseArch(ids)                      [vectors, dim]: an encoder
//! z = InteractionArch(d, s)                dot:    [d, <x_i, x_j> for j < i], x = d and the vectors of s
//!                                          concat: [d, s]
//! logit = OverArch(z)
//! ```
//!
//! DenseArch and OverArch are multi-layer perceptrons. Without hidden layers the model is a classic baseline: `concat` with
//! `dim` 1 is logistic regression, `dot` is a factorization machine with a weight per pair of features.

mod file;
mod interaction;
mod mlp;

pub use interaction::Interaction;
pub use mlp::{AdamStep, Mlp};

use crate::{
    Error, Result,
    data::Batch,
    encoders::{self, Encoder, EncoderConfig, Exec},
    schema::Schema,
};
use interaction::{InputGradients, InteractionArch};
use mlp::sized;
use scrimp_kernels::embedding::{MAX_VECTORS, Optimizer};
use serde::{Deserialize, Serialize};

/// The complete shape of a model; part of the model file. The names in the file are older than the field names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The columns.
    pub schema: Schema,
    /// The SparseArch.
    pub encoder: EncoderConfig,
    /// The InteractionArch.
    pub interaction: Interaction,
    /// Sizes of the hidden layers of the DenseArch, whose output has the encoder's dimension.
    #[serde(rename = "bottom")]
    pub dense_layer_sizes: Vec<usize>,
    /// Sizes of the hidden layers of the OverArch.
    #[serde(rename = "top")]
    pub over_layer_sizes: Vec<usize>,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Bytes of a full f32 table: distinct ids times dimension times 4.
    pub full_embedding_bytes: u64,
}

/// The optimizers of a training step.
#[derive(Debug, Clone, Copy)]
pub struct StepOptions {
    /// The optimizer of the embeddings.
    pub embedding: Optimizer,
    /// Learning rate of the dense layers, which Adam trains.
    pub dense_lr: f32,
}

/// A DLRM for prediction and training.
pub struct Model {
    config: ModelConfig,
    dense_arch: Option<Mlp>,
    sparse_arch: Box<dyn Encoder>,
    interaction_arch: InteractionArch,
    over_arch: Mlp,
    /// Training steps so far.
    steps: u64,
    buffers: Buffers,
}

#[derive(Default)]
struct Buffers {
    /// Outputs of the SparseArch.
    sparse: Vec<f32>,
    /// Inputs of the OverArch, and their gradients.
    z: Vec<f32>,
    dz: Vec<f32>,
    /// Gradients of the inputs of the InteractionArch.
    gradients: InputGradients,
    /// Gradients of the logits.
    dlogit: Vec<f32>,
}

/// `1 / (1 + e^-x)`
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Calls `body(row, values)` for each row of `row_len` values, on all threads.
fn each_row(exec: Exec<'_>, data: &mut [f32], row_len: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
    const ROWS: usize = 64;
    exec.pool.chunks(data, ROWS * row_len, |chunk, data| {
        for (i, row) in data.chunks_exact_mut(row_len).enumerate() {
            body(chunk * ROWS + i, row);
        }
    });
}

/// The sizes of an MLP's inputs, hidden layers and outputs.
fn layer_sizes(inputs: usize, hidden: &[usize], outputs: usize) -> Vec<usize> {
    [inputs].into_iter().chain(hidden.iter().copied()).chain([outputs]).collect()
}

impl Model {
    /// A model with random weights. `keys` are the ids with a row each ([`encoders::keys_for`]).
    ///
    /// # Errors
    /// The configuration is invalid, or an allocation fails.
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
        let mut sizes = config.dense_layer_sizes.iter().chain(&config.over_layer_sizes);
        if sizes.any(|&n| n == 0 || n > 65536) {
            return Err(Error::bad_input("layers have 1 to 65536 outputs"));
        }
        let sparse_arch = encoders::build(&config.encoder, keys)?;
        let dense_arch = if numeric > 0 {
            let sizes = layer_sizes(numeric, &config.dense_layer_sizes, dim);
            Some(Mlp::new(&sizes, true, config.seed ^ 0xb0)?)
        } else {
            None
        };
        let interaction_arch = InteractionArch {
            interaction: config.interaction,
            has_dense: dense_arch.is_some(),
            sparse_vectors: sparse_arch.vectors(),
            dim,
        };
        let vectors = interaction_arch.vectors();
        if vectors > MAX_VECTORS {
            return Err(Error::bad_input(format!("{vectors} features: {MAX_VECTORS} are the most")));
        }
        if interaction_arch.outputs() == 0 {
            return Err(Error::bad_input(format!("the interaction of {vectors} vectors has no output"))
                .with_hint("concatenate the vectors, or use more features"));
        }
        let sizes = layer_sizes(interaction_arch.outputs(), &config.over_layer_sizes, 1);
        let over_arch = Mlp::new(&sizes, false, config.seed ^ 0x70)?;
        let buffers = Buffers::default();
        Ok(Self { config, dense_arch, sparse_arch, interaction_arch, over_arch, steps: 0, buffers })
    }

    /// A model with the dense layers of this one and with another encoder, which has random tables. `keys` as in
    /// [`Model::new`].
    ///
    /// # Errors
    /// The encoder has another number or dimension of vectors, or an allocation fails.
    pub fn with_encoder(&self, encoder: EncoderConfig, keys: &[u64]) -> Result<Self> {
        let mut model = Self::new(ModelConfig { encoder, ..self.config.clone() }, keys)?;
        let shape = |m: &Self| (m.sparse_arch.vectors(), m.config.encoder.dim);
        if shape(&model) != shape(self) {
            return Err(Error::bad_input("the encoder's vectors do not fit the dense layers of the model")
                .with_hint("use the dimension of the model, and an encoder with a vector per feature"));
        }
        if let (Some(to), Some(from)) = (&mut model.dense_arch, &self.dense_arch) {
            to.copy_weights(from);
        }
        model.over_arch.copy_weights(&self.over_arch);
        Ok(model)
    }

    /// A step of the regression of the embeddings on those of `target` for the ids of `batch`. Returns the sums of the
    /// squared differences and of the squared targets, before the step.
    ///
    /// # Panics
    /// As [`Model::step`], or if the targets have another shape.
    pub fn fit_embeddings(
        &mut self,
        exec: Exec<'_>,
        target: &Self,
        batch: &Batch,
        optimizer: Optimizer,
    ) -> (f64, f64) {
        self.check(batch);
        let len = batch.rows() * self.sparse_arch.vectors() * self.config.encoder.dim;
        let Buffers { sparse, dz: targets, .. } = &mut self.buffers;
        let (own, targets) = (sized(sparse, len), sized(targets, len));
        self.sparse_arch.forward(exec, &batch.ids, own);
        target.sparse_arch.forward(exec, &batch.ids, targets);
        let (mut error, mut norm) = (0.0, 0.0);
        let scale = 1.0 / batch.rows().max(1) as f32;
        for (x, y) in own.iter_mut().zip(&*targets) {
            let difference = *x - y;
            error += f64::from(difference * difference);
            norm += f64::from(y * y);
            *x = difference * scale;
        }
        self.sparse_arch.backward(exec, &batch.ids, own, optimizer);
        (error, norm)
    }

    /// Forgets the state of the embeddings' optimizer: the next steps are as large as those of a new model.
    pub fn reset_embedding_optimizer(&mut self) {
        self.sparse_arch.params_mut().into_iter().for_each(|(_, param)| param.state.clear());
    }

    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The columns.
    pub fn schema(&self) -> &Schema {
        &self.config.schema
    }

    /// The SparseArch.
    pub fn encoder(&self) -> &dyn Encoder {
        &*self.sparse_arch
    }

    /// Size of the stored embeddings in bytes.
    pub fn embedding_bytes(&self) -> u64 {
        self.sparse_arch.bytes() as u64
    }

    /// Converts the embeddings to their stored precision. Training ends here.
    pub fn quantize(&mut self) {
        self.sparse_arch.quantize();
    }

    /// Runs between two epochs; see [`Encoder::between_epochs`].
    pub fn between_epochs(&mut self, exec: Exec<'_>) {
        self.sparse_arch.between_epochs(exec);
    }

    fn check(&self, batch: &Batch) {
        let rows = batch.rows();
        assert_eq!(batch.ids.len(), rows * self.config.encoder.features);
        assert_eq!(batch.numeric.len(), rows * self.config.schema.n_numeric());
    }

    /// Writes the logits of the rows of `batch` to `logits`.
    ///
    /// # Panics
    /// The shape of the batch differs from the schema's.
    pub fn logits(&mut self, exec: Exec<'_>, batch: &Batch, logits: &mut Vec<f32>) {
        self.check(batch);
        logits.clear();
        logits.extend_from_slice(self.forward(exec, batch));
    }

    /// Writes the probabilities of the rows of `batch` to `probabilities`.
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
        let sparse_len = rows * self.sparse_arch.vectors() * self.config.encoder.dim;
        let sparse = sized(&mut self.buffers.sparse, sparse_len);
        self.sparse_arch.forward(exec, &batch.ids, sparse);
        let dense = match &mut self.dense_arch {
            Some(dense_arch) => dense_arch.forward(exec, &batch.numeric, rows),
            None => &[],
        };
        let z = sized(&mut self.buffers.z, rows * self.interaction_arch.outputs());
        self.interaction_arch.forward(exec, dense, sparse, z);
        self.over_arch.forward(exec, z, rows)
    }

    /// A training step. Returns the sum of the log losses of the rows before the step.
    ///
    /// # Panics
    /// As [`Model::logits`], or after [`Model::quantize`].
    pub fn step(&mut self, exec: Exec<'_>, batch: &Batch, options: StepOptions) -> f64 {
        self.check(batch);
        let rows = batch.rows();
        if rows == 0 {
            return 0.0;
        }
        let mut dlogit = std::mem::take(&mut self.buffers.dlogit);
        dlogit.clear();
        let mut loss = 0.0;
        for (&x, &y) in self.forward(exec, batch).iter().zip(&batch.labels) {
            dlogit.push((sigmoid(x) - y) / rows as f32);
            // log(1 + e^x) - y x, without overflow
            loss += f64::from(x.max(0.0) - y * x + (-x.abs()).exp().ln_1p());
        }
        self.steps += 1;
        let adam = AdamStep { lr: options.dense_lr, number: self.steps };
        let Buffers { sparse, z, dz, gradients, .. } = &mut self.buffers;
        let (z_len, sparse_len) = (
            rows * self.interaction_arch.outputs(),
            rows * self.sparse_arch.vectors() * self.config.encoder.dim,
        );
        let dz = sized(dz, z_len);
        self.over_arch.backward(exec, &z[..z_len], &dlogit, Some(dz), adam);
        let dense = self.dense_arch.as_ref().map_or(&[][..], |dense_arch| dense_arch.outputs(rows));
        let (d_dense, d_sparse) =
            self.interaction_arch.backward(exec, (dense, &sparse[..sparse_len]), dz, gradients);
        self.sparse_arch.backward(exec, &batch.ids, d_sparse, options.embedding);
        if let Some(dense_arch) = &mut self.dense_arch {
            dense_arch.backward(exec, &batch.numeric, d_dense, None, adam);
        }
        self.buffers.dlogit = dlogit;
        loss
    }
}
