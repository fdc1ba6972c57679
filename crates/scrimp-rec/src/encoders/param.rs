//! Learned tables.

use super::stored::{Precision, Stored, best_step, round, round_all, rounded};
use crate::{Error, Result};
use scrimp_kernels::{
    Exec,
    embedding::{Backward, Gradients, IdHash, Int4, Optimizer, Table, TableMut, Values},
};
use std::{ops::Range, sync::Mutex};

/// A table of rows, with the optimizer's state and the buffers of its gradients.
#[derive(Debug)]
pub struct Param {
    /// The values.
    pub values: Stored,
    /// The optimizer's state; empty until the first step.
    pub state: Vec<f32>,
    /// Values of a row.
    pub block_dim: usize,
    /// Distance between the first values of two rows: `block_dim`, or 1 for overlapping rows.
    pub stride: usize,
    rounded: Option<Rounded>,
    gradients: Mutex<Gradients>,
}

/// The values in their stored precision, beside the f32 values that learn: quantization-aware training with
/// straight-through gradients (Bengio et al., arXiv 1308.3432).
#[derive(Debug)]
struct Rounded {
    values: Stored,
    /// Training steps so far; they determine when the quantization step is chosen anew.
    steps: u32,
}

/// Training steps between two choices of the quantization step. The first choices follow at powers of two.
const RESCALE: u32 = 64;

/// A vector of `n` zeros, or an error if the allocation fails. `what` names its purpose.
pub(crate) fn zeros(n: usize, what: &str) -> Result<Vec<f32>> {
    let mut v = Vec::new();
    v.try_reserve_exact(n)
        .map_err(|_| Error::out_of_memory(format!("{what}, {} bytes", n.saturating_mul(4))))?;
    v.resize(n, 0.0);
    Ok(v)
}

/// The size of a table and the distribution of its initial values: uniform in `middle - spread .. middle + spread`.
#[derive(Debug, Clone, Copy)]
pub struct ParamInit {
    /// Number of values.
    pub len: usize,
    /// Values of a row.
    pub block_dim: usize,
    /// Distance between the first values of two rows: `block_dim`, or 1 for overlapping rows.
    pub stride: usize,
    /// Seed of the values.
    pub seed: u64,
    /// Center of the distribution.
    pub middle: f32,
    /// Half of its width.
    pub spread: f32,
}

impl ParamInit {
    /// `n` rows of `dim` zeros, side by side.
    pub fn rows(n: usize, dim: usize, seed: u64) -> Self {
        Self { len: n * dim, block_dim: dim, stride: dim, seed, middle: 0.0, spread: 0.0 }
    }
}

impl Param {
    /// A table with random values. The same seed gives the same values on every machine.
    ///
    /// # Errors
    /// The allocation fails.
    pub fn new(init: ParamInit) -> Result<Self> {
        let ParamInit { len, block_dim, stride, seed, middle, spread } = init;
        let mut values = zeros(len, "an embedding table")?;
        let hash = IdHash::new(seed, 0x696e_6974);
        for (i, v) in values.iter_mut().enumerate() {
            let unit = (hash.hash(i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0;
            *v = middle + spread * unit;
        }
        Ok(Self {
            values: Stored::F32(values),
            state: Vec::new(),
            block_dim,
            stride,
            rounded: None,
            gradients: Mutex::default(),
        })
    }

    /// Turns on quantization-aware training: [`Param::table`] returns the values rounded to `precision`, and training
    /// updates the exact ones.
    pub fn round_in_training(&mut self, precision: Precision) {
        if let Stored::F32(values) = &self.values {
            self.rounded = match rounded(values, precision, self.block_dim, self.stride) {
                Stored::F32(_) => None,
                values => Some(Rounded { values, steps: 0 }),
            };
        }
    }

    /// Rounds the values in `range`, which have changed.
    pub fn round(&mut self, range: Range<usize>) {
        let shape = self.shape();
        let (Stored::F32(values), Some(rounded)) = (&self.values, &mut self.rounded) else { return };
        round(&values[range.clone()], range.start, shape, &mut rounded.values);
    }

    /// The quantization step and its age in training steps, which a checkpoint stores; `None` without rounding.
    pub fn rounding(&self) -> Option<[f32; 2]> {
        let rounded = self.rounded.as_ref()?;
        Some([rounded.values.scale().unwrap_or(1.0), rounded.steps as f32])
    }

    /// Replaces the values by those of a file. `rounding` is the stored result of [`Param::rounding`].
    pub fn replace(&mut self, stored: Stored, rounding: Option<[f32; 2]>) {
        let shape = self.shape();
        self.values = stored;
        match (&self.values, &mut self.rounded, rounding) {
            (Stored::F32(values), Some(rounded), Some([step, steps])) if values.len() == shape.len => {
                if let Some((scale, _)) = rounded.values.scale_mut() {
                    *scale = step;
                }
                rounded.steps = steps as u32;
                round(values, 0, shape, &mut rounded.values);
            }
            _ => self.rounded = None,
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match &self.values {
            Stored::F32(v) => v.len(),
            Stored::Bf16(v) => v.len(),
            Stored::Int8 { q, .. } => q.len(),
            Stored::Int4 { len, .. } => *len,
        }
    }

    /// The layout of the values in int4.
    pub fn shape(&self) -> Int4 {
        Int4 { len: self.len(), block_dim: self.block_dim, stride: self.stride }
    }

    /// True without values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the values, without the quantization step.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Stored::F32(v) => v.len() * 4,
            Stored::Bf16(v) => v.len() * 2,
            Stored::Int8 { q, .. } => q.len(),
            Stored::Int4 { q, .. } => q.len(),
        }
    }

    /// The table for the kernels.
    pub fn table(&self) -> Table<'_> {
        let values = match self.rounded.as_ref().map_or(&self.values, |r| &r.values) {
            Stored::F32(v) => Values::F32(v),
            Stored::Bf16(v) => Values::Bf16(v),
            Stored::Int8 { q, scale } => Values::Int8 { q, scale: *scale },
            Stored::Int4 { q, len, scale } => Values::Int4 { q, len: *len, scale: *scale },
        };
        Table { values, block_dim: self.block_dim, stride: self.stride }
    }

    /// The values of a table in training.
    ///
    /// # Panics
    /// After [`Param::quantize`].
    pub fn floats(&self) -> &[f32] {
        match &self.values {
            Stored::F32(v) => v,
            _ => panic!("a quantized table is not trained"),
        }
    }

    /// Applies the gradients of a batch.
    ///
    /// # Panics
    /// After [`Param::quantize`].
    pub fn step(&mut self, exec: Exec<'_>, optimizer: Optimizer, batch: &Backward<'_>) {
        let shape = self.shape();
        let Stored::F32(values) = &mut self.values else { panic!("a quantized table is not trained") };
        // Overlapping rows have no row of their own whose state could be kept.
        let states = optimizer.states(values.len(), self.block_dim) + 1;
        if self.state.len() < states {
            self.state.resize(states, 0.0);
        }
        let table =
            TableMut { values, state: &mut self.state, block_dim: self.block_dim, stride: self.stride };
        let gradients = self.gradients.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        gradients.step(exec, optimizer, table, batch);
        let Some(rounded) = &mut self.rounded else { return };
        rounded.steps += 1;
        let again = rounded.steps.is_multiple_of(RESCALE) || rounded.steps.is_power_of_two();
        if again {
            // A file stores the count as f32, which is exact up to 2^24.
            rounded.steps = rounded.steps.min(1 << 20);
            if let Some((scale, precision)) = rounded.values.scale_mut() {
                *scale = best_step(values, precision);
            }
        }
        if again || gradients.touched().count() > values.len() / self.block_dim / 4 {
            return round_all(exec.pool, values, shape, &mut rounded.values);
        }
        for &block in gradients.touched() {
            let start = block as usize * self.block_dim;
            let end = (start + self.block_dim).min(values.len());
            round(&values[start..end], start, shape, &mut rounded.values);
        }
    }

    /// Stores the values with `precision` and frees the training state. Values that were rounded in training are stored
    /// unchanged.
    pub fn quantize(&mut self, precision: Precision) {
        let Stored::F32(values) = &self.values else { return };
        self.values = match self.rounded.take() {
            Some(rounded) => rounded.values,
            None if precision == Precision::F32 => return,
            None => rounded(values, precision, self.block_dim, self.stride),
        };
        self.state = Vec::new();
        self.gradients = Mutex::default();
    }
}
