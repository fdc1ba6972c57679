//! InteractionArch: the inputs of the OverArch, from the outputs of DenseArch and SparseArch.

use super::{each_row, mlp::sized};
use crate::encoders::Exec;
use scrimp_kernels::embedding::{PairPlaces, VectorGradients, Vectors, pairs, pairs_backward};
use serde::{Deserialize, Serialize};

/// The function of the vectors of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interaction {
    /// The dot products of all pairs.
    Dot,
    /// Concatenation.
    Concat,
}

/// The shape of an interaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct InteractionArch {
    pub(super) interaction: Interaction,
    /// Whether there is a DenseArch.
    pub(super) has_dense: bool,
    /// Vectors of the SparseArch.
    pub(super) sparse_vectors: usize,
    pub(super) dim: usize,
}

/// The gradients of the inputs; buffers are reused.
#[derive(Debug, Default)]
pub(super) struct InputGradients {
    /// `[rows, dim]`, empty without a DenseArch.
    dense: Vec<f32>,
    /// `[rows, sparse_vectors, dim]`
    sparse: Vec<f32>,
}

impl InteractionArch {
    /// The number of vectors of a row.
    pub(super) fn vectors(&self) -> usize {
        self.sparse_vectors + usize::from(self.has_dense)
    }

    /// The number of outputs of a row: inputs of the OverArch.
    pub(super) fn outputs(&self) -> usize {
        match self.interaction {
            Interaction::Concat => self.vectors() * self.dim,
            Interaction::Dot => self.vectors() * self.vectors().saturating_sub(1) / 2 + self.dense_dim(),
        }
    }

    fn dense_dim(&self) -> usize {
        if self.has_dense { self.dim } else { 0 }
    }

    fn sparse_dim(&self) -> usize {
        self.sparse_vectors * self.dim
    }

    /// Writes `[rows, outputs]` to `z`, from `dense`, `[rows, dim]` or empty, and `sparse`, `[rows, sparse_vectors, dim]`.
    pub(super) fn forward(&self, exec: Exec<'_>, dense: &[f32], sparse: &[f32], z: &mut [f32]) {
        let (outputs, dense_dim, sparse_dim) = (self.outputs(), self.dense_dim(), self.sparse_dim());
        if self.interaction == Interaction::Dot {
            let x = Vectors { head: dense, tail: sparse, others: self.sparse_vectors, dim: self.dim };
            pairs(exec, &x, z, PairPlaces { stride: outputs, offset: dense_dim });
        }
        let concat = self.interaction == Interaction::Concat;
        each_row(exec, z, outputs, |row, z| {
            let (first, rest) = z.split_at_mut(dense_dim);
            first.copy_from_slice(&dense[row * dense_dim..(row + 1) * dense_dim]);
            if concat {
                rest.copy_from_slice(&sparse[row * sparse_dim..(row + 1) * sparse_dim]);
            }
        });
    }

    /// The gradients of `dense` and `sparse`, from the gradients `dz` of the outputs.
    pub(super) fn backward<'a>(
        &self,
        exec: Exec<'_>,
        (dense, sparse): (&[f32], &[f32]),
        dz: &[f32],
        gradients: &'a mut InputGradients,
    ) -> (&'a [f32], &'a [f32]) {
        let (outputs, dense_dim, sparse_dim) = (self.outputs(), self.dense_dim(), self.sparse_dim());
        let rows = dz.len() / outputs;
        let d_dense = sized(&mut gradients.dense, rows * dense_dim);
        if dense_dim > 0 {
            each_row(exec, d_dense, dense_dim, |row, d| d.copy_from_slice(&dz[row * outputs..][..dense_dim]));
        }
        let d_sparse = sized(&mut gradients.sparse, rows * sparse_dim);
        match self.interaction {
            Interaction::Concat => each_row(exec, d_sparse, sparse_dim, |row, d| {
                d.copy_from_slice(&dz[row * outputs + dense_dim..][..sparse_dim]);
            }),
            Interaction::Dot => {
                let x = Vectors { head: dense, tail: sparse, others: self.sparse_vectors, dim: self.dim };
                let places = PairPlaces { stride: outputs, offset: dense_dim };
                let gradients = VectorGradients { head: &mut *d_dense, tail: &mut *d_sparse };
                pairs_backward(exec, &x, dz, places, gradients);
            }
        }
        (d_dense, d_sparse)
    }
}
