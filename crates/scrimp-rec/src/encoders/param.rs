//! Learned tables.

use super::stored::{Precision, Stored, best_step, round, round_all, rounded};
use crate::{Error, Result};
use scrimp_kernels::{
    Exec,
    embedding::{Backward, Gradients, IdHash, Int4, Optimizer, Table, Trained, Values},
};
use std::{ops::Range, sync::Mutex};

/// A table of rows with what training needs of it.
#[derive(Debug)]
pub struct Param {
    /// The values.
    pub values: Stored,
    /// The optimizer's state; empty until the first step.
    pub state: Vec<f32>,
    /// Values of a row.
    pub width: usize,
    /// Values from row to row: `width` or 1.
    pub stride: usize,
    rounded: Option<Rounded>,
    gradients: Mutex<Gradients>,
}

/// The values as they will be stored, beside those that learn: quantization-aware training with straight-through gradients (Bengio
/// et al., arXiv 1308.3432).
#[derive(Debug)]
struct Rounded {
    values: Stored,
    /// Steps so far, which say when the step of quantization is chosen again.
    steps: u32,
}

/// Steps of training between two choices of the step of quantization; in the beginning it is chosen more often.
const RESCALE: u32 = 64;

/// A vector of `n` numbers, or an error where the memory cannot be had.
pub(crate) fn zeros(n: usize, what: &str) -> Result<Vec<f32>> {
    let mut v = Vec::new();
    v.try_reserve_exact(n)
        .map_err(|_| Error::out_of_memory(format!("{what}, {} bytes", n.saturating_mul(4))))?;
    v.resize(n, 0.0);
    Ok(v)
}

impl Param {
    /// `len` values evenly distributed within `middle` +- `spread`, the same for a seed everywhere.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(len: usize, width: usize, stride: usize, seed: u64, middle: f32, spread: f32) -> Result<Self> {
        let mut values = zeros(len, "an embedding table")?;
        let hash = IdHash::new(seed, 0x696e_6974);
        for (i, v) in values.iter_mut().enumerate() {
            let unit = (hash.hash(i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0;
            *v = middle + spread * unit;
        }
        Ok(Self {
            values: Stored::F32(values),
            state: Vec::new(),
            width,
            stride,
            rounded: None,
            gradients: Mutex::default(),
        })
    }

    /// From now on [`Param::table`] has the values rounded to `precision`, while training goes on with the exact ones.
    pub fn round_in_training(&mut self, precision: Precision) {
        if let Stored::F32(values) = &self.values {
            self.rounded = match rounded(values, precision, self.width, self.stride) {
                Stored::F32(_) => None,
                values => Some(Rounded { values, steps: 0 }),
            };
        }
    }

    /// Rounds some values again, which have changed.
    pub fn round(&mut self, range: Range<usize>) {
        let shape = self.shape();
        let (Stored::F32(values), Some(rounded)) = (&self.values, &mut self.rounded) else { return };
        round(&values[range.clone()], range.start, shape, &mut rounded.values);
    }

    /// What a file must keep of a table that is rounded in training: the step of quantization and its age.
    pub fn rounding(&self) -> Option<[f32; 2]> {
        let rounded = self.rounded.as_ref()?;
        Some([rounded.values.scale().unwrap_or(1.0), rounded.steps as f32])
    }

    /// Takes values from a file, with what [`Param::rounding`] was.
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

    /// How the values lie if they are int4.
    pub fn shape(&self) -> Int4 {
        Int4 { len: self.len(), width: self.width, stride: self.stride }
    }

    /// True without values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the values (the one step of integers is not counted).
    pub fn bytes(&self) -> usize {
        match &self.values {
            Stored::F32(v) => v.len() * 4,
            Stored::Bf16(v) => v.len() * 2,
            Stored::Int8 { q, .. } => q.len(),
            Stored::Int4 { q, .. } => q.len(),
        }
    }

    /// The table that kernels read.
    pub fn table(&self) -> Table<'_> {
        let values = match self.rounded.as_ref().map_or(&self.values, |r| &r.values) {
            Stored::F32(v) => Values::F32(v),
            Stored::Bf16(v) => Values::Bf16(v),
            Stored::Int8 { q, scale } => Values::Int8 { q, scale: *scale },
            Stored::Int4 { q, len, scale } => Values::Int4 { q, len: *len, scale: *scale },
        };
        Table { values, width: self.width, stride: self.stride }
    }

    /// The values in training.
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
        let states = optimizer.states(values.len(), self.width) + 1;
        if self.state.len() < states {
            self.state.resize(states, 0.0);
        }
        let table = Trained { values, state: &mut self.state, width: self.width, stride: self.stride };
        let gradients = self.gradients.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        gradients.step(exec.pool, exec.level, optimizer, table, batch);
        let Some(rounded) = &mut self.rounded else { return };
        rounded.steps += 1;
        let again = rounded.steps.is_multiple_of(RESCALE) || rounded.steps.is_power_of_two();
        if again {
            // Kept small: a file stores it as f32.
            rounded.steps = rounded.steps.min(1 << 20);
            if let Some((scale, precision)) = rounded.values.scale_mut() {
                *scale = best_step(values, precision);
            }
        }
        if again || gradients.touched().count() > values.len() / self.width / 4 {
            return round_all(exec.pool, values, shape, &mut rounded.values);
        }
        for &block in gradients.touched() {
            let start = block as usize * self.width;
            let end = (start + self.width).min(values.len());
            round(&values[start..end], start, shape, &mut rounded.values);
        }
    }

    /// Stores the values with `precision` and frees what training needed. Values that were rounded in training stay as they were.
    pub fn quantize(&mut self, precision: Precision) {
        let Stored::F32(values) = &self.values else { return };
        self.values = match self.rounded.take() {
            Some(rounded) => rounded.values,
            None if precision == Precision::F32 => return,
            None => rounded(values, precision, self.width, self.stride),
        };
        self.state = Vec::new();
        self.gradients = Mutex::default();
    }
}
