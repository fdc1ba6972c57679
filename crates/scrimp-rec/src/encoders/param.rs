//! Learned tables.

use crate::{Error, Result};
use scrimp_kernels::{
    Tier,
    embedding::{Backward, Gradients, IdHash, Optimizer, Table, Trained, Values},
    threads::Pool,
};
use serde::{Deserialize, Serialize};
use std::sync::Mutex;

/// What computations run on.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// The threads.
    pub pool: &'a Pool,
    /// The instructions.
    pub tier: Tier,
}

/// How rows are stored when training is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As trained.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// 8 bits and one step for the table, the one with the least squared error.
    Int8,
}

impl Precision {
    /// Bytes of a value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }
}

/// Values as they are stored.
#[derive(Debug)]
pub enum Stored {
    /// In training, or for good.
    F32(Vec<f32>),
    /// bfloat16, as bits.
    Bf16(Vec<u16>),
    /// `scale * q`.
    Int8 {
        /// The quantised values.
        q: Vec<i8>,
        /// The step.
        scale: f32,
    },
}

/// A table of rows with what training needs of it.
#[derive(Debug)]
pub struct Param {
    /// The values.
    pub values: Stored,
    /// The optimiser's state; empty until the first step.
    pub state: Vec<f32>,
    /// Values of a row.
    pub width: usize,
    /// Values from row to row: `width` or 1.
    pub stride: usize,
    gradients: Mutex<Gradients>,
}

/// A vector of `n` numbers, or an error where the memory cannot be had.
pub(crate) fn zeros(n: usize, what: &str) -> Result<Vec<f32>> {
    let mut v = Vec::new();
    v.try_reserve_exact(n)
        .map_err(|_| Error::OutOfMemory { what: format!("{what}, {} bytes", n.saturating_mul(4)) })?;
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
            gradients: Mutex::default(),
        })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match &self.values {
            Stored::F32(v) => v.len(),
            Stored::Bf16(v) => v.len(),
            Stored::Int8 { q, .. } => q.len(),
        }
    }

    /// True without values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the values (the one step of 8-bit values is not counted).
    pub fn bytes(&self) -> usize {
        match &self.values {
            Stored::F32(v) => v.len() * 4,
            Stored::Bf16(v) => v.len() * 2,
            Stored::Int8 { q, .. } => q.len(),
        }
    }

    /// The table that kernels read.
    pub fn table(&self) -> Table<'_> {
        let values = match &self.values {
            Stored::F32(v) => Values::F32(v),
            Stored::Bf16(v) => Values::Bf16(v),
            Stored::Int8 { q, scale } => Values::Int8 { q, scale: *scale },
        };
        Table { values, width: self.width, stride: self.stride }
    }

    /// The values in training.
    ///
    /// # Panics
    /// After [`Param::quantise`].
    pub fn floats(&self) -> &[f32] {
        match &self.values {
            Stored::F32(v) => v,
            _ => panic!("a quantised table is not trained"),
        }
    }

    /// Applies the gradients of a batch.
    ///
    /// # Panics
    /// After [`Param::quantise`].
    pub fn step(&mut self, run: Run<'_>, optimizer: Optimizer, batch: &Backward<'_>) {
        let Stored::F32(values) = &mut self.values else { panic!("a quantised table is not trained") };
        // Overlapping rows have no row of their own whose state could be kept.
        let states = optimizer.states(values.len(), self.width) + 1;
        if self.state.len() < states {
            self.state.resize(states, 0.0);
        }
        let table = Trained { values, state: &mut self.state, width: self.width, stride: self.stride };
        let gradients = self.gradients.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        gradients.step(run.pool, run.tier, optimizer, table, batch);
    }

    /// Stores the values with `precision` and frees what training needed.
    pub fn quantise(&mut self, precision: Precision) {
        let Stored::F32(values) = &self.values else { return };
        let stored = match precision {
            Precision::F32 => return,
            Precision::Bf16 => {
                Stored::Bf16(values.iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect())
            }
            Precision::Int8 => {
                let scale = best_step(values);
                let q = values.iter().map(|&v| quantised(v, scale)).collect();
                Stored::Int8 { q, scale }
            }
        };
        self.values = stored;
        self.state = Vec::new();
        self.gradients = Mutex::default();
    }
}

fn quantised(v: f32, scale: f32) -> i8 {
    (v / scale).round_ties_even().clamp(-127.0, 127.0) as i8
}

/// The step with the least squared error, of some that cut off more and more of the largest values.
fn best_step(values: &[f32]) -> f32 {
    let max = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    if max == 0.0 {
        return 1.0;
    }
    // A sample is enough to judge.
    let every = (values.len() / 200_000).max(1);
    let mut best = (f64::INFINITY, max / 127.0);
    let mut clip = max;
    for _ in 0..24 {
        let scale = clip / 127.0;
        let error: f64 = values
            .iter()
            .step_by(every)
            .map(|&v| f64::from(v - f32::from(quantised(v, scale)) * scale).powi(2))
            .sum();
        if error < best.0 {
            best = (error, scale);
        }
        clip *= 0.85;
    }
    best.1
}
