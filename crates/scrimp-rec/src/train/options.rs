//! Options of a training.

use crate::{
    Error, Result,
    encoders::EncoderConfig,
    model::{Interaction, ModelConfig, StepOptions},
    schema::Schema,
};
use scrimp_kernels::embedding::Optimizer;
use std::path::PathBuf;

/// Options of [`train`](super::train()).
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Passes over the data.
    pub epochs: u64,
    /// Rows of a step.
    pub batch: usize,
    /// Learning rate of the embeddings.
    pub lr: f32,
    /// Learning rate of the dense layers.
    pub dense_lr: f32,
    /// Optimizer of the embeddings.
    pub optimizer: OptimizerKind,
    /// Steps between evaluations on the validation data; `None`: after each epoch.
    pub eval_steps: Option<u64>,
    /// Stops after this many evaluations without a better AUC, and restores the best model; 0: never.
    pub patience: u32,
    /// The file of checkpoints. A training resumes from an existing one.
    pub checkpoint: Option<PathBuf>,
    /// Steps between checkpoints.
    pub checkpoint_steps: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            epochs: 1,
            batch: 2048,
            lr: 0.05,
            dense_lr: 1e-3,
            optimizer: OptimizerKind::Adagrad,
            eval_steps: None,
            patience: 2,
            checkpoint: None,
            checkpoint_steps: 1000,
        }
    }
}

/// Optimizers of the embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptimizerKind {
    /// Adagrad (Duchi et al., 2011).
    Adagrad,
    /// Adagrad with one state per row.
    RowWiseAdagrad,
    /// Stochastic gradient descent.
    Sgd,
}

impl OptimizerKind {
    /// Every optimizer.
    pub const ALL: [Self; 3] = [Self::Adagrad, Self::RowWiseAdagrad, Self::Sgd];

    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adagrad => "adagrad",
            Self::RowWiseAdagrad => "row-wise-adagrad",
            Self::Sgd => "sgd",
        }
    }

    /// One line for lists of optimizers.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Adagrad => "Adagrad: a learning rate per value",
            Self::RowWiseAdagrad => "Adagrad with one state per row",
            Self::Sgd => "stochastic gradient descent",
        }
    }
}

impl TrainOptions {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A number of rows or epochs is 0, or a learning rate is not a positive number.
    pub fn check(&self) -> Result<()> {
        for (name, count) in [("epochs", self.epochs), ("batch", self.batch as u64)] {
            if count == 0 {
                return Err(Error::bad_input(format!("`{name}` is 0: at least 1 is expected")));
            }
        }
        for (name, rate) in [("lr", self.lr), ("dense_lr", self.dense_lr)] {
            if !(rate.is_finite() && rate > 0.0) {
                return Err(Error::bad_input(format!(
                    "`{name}` is {rate}: a number greater than 0 is expected"
                )));
            }
        }
        Ok(())
    }

    /// The optimizers of a step.
    pub fn step(&self) -> StepOptions {
        let (lr, eps) = (self.lr, 1e-8);
        let embedding = match self.optimizer {
            OptimizerKind::Adagrad => Optimizer::Adagrad { lr, eps },
            OptimizerKind::RowWiseAdagrad => Optimizer::RowWiseAdagrad { lr, eps },
            OptimizerKind::Sgd => Optimizer::Sgd { lr },
        };
        StepOptions { embedding, dense_lr: self.dense_lr }
    }
}

/// The dense layers and the interaction of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// The InteractionArch.
    pub interaction: Interaction,
    /// Sizes of the hidden layers of the DenseArch.
    pub dense_layer_sizes: Vec<usize>,
    /// Sizes of the hidden layers of the OverArch.
    pub over_layer_sizes: Vec<usize>,
}

impl Preset {
    /// The names for [`Preset::named`].
    pub const NAMES: [&'static str; 4] = ["dlrm", "dlrm-mlperf", "lr", "fm"];

    /// `dlrm` (small layers), `dlrm-mlperf` (the layers of MLPerf: 512-256 and 1024-1024-512-256), `lr` (logistic regression,
    /// with `dim` 1), `fm` (a factorization machine).
    pub fn named(name: &str) -> Option<Self> {
        let preset = |interaction, dense: &[usize], over: &[usize]| {
            Some(Self { interaction, dense_layer_sizes: dense.to_vec(), over_layer_sizes: over.to_vec() })
        };
        match name {
            "dlrm" => preset(Interaction::Dot, &[128], &[256, 128]),
            "dlrm-mlperf" => preset(Interaction::Dot, &[512, 256], &[1024, 1024, 512, 256]),
            "lr" => preset(Interaction::Concat, &[], &[]),
            "fm" => preset(Interaction::Dot, &[], &[]),
            _ => None,
        }
    }

    /// The configuration of a model. Dot products need two vectors: those of bagged encoders, and a single one, are
    /// concatenated.
    pub fn config(
        &self,
        schema: Schema,
        encoder: EncoderConfig,
        seed: u64,
        full_embedding_bytes: u64,
    ) -> ModelConfig {
        let vectors = encoder.features + usize::from(schema.n_numeric() > 0);
        let single = encoder.bagged || vectors < 2;
        ModelConfig {
            schema,
            interaction: if single { Interaction::Concat } else { self.interaction },
            encoder,
            dense_layer_sizes: self.dense_layer_sizes.clone(),
            over_layer_sizes: self.over_layer_sizes.clone(),
            seed,
            full_embedding_bytes,
        }
    }
}
