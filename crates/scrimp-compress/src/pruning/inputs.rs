//! Statistics of the inputs of a linear layer.

use crate::pruning::gram::{Damping, Gram};
use scrimp_kernels::{Exec, Pool};
use scrimp_llm::error::{Error, Result};
use std::sync::OnceLock;

/// The statistics that a method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Statistics {
    /// Nothing.
    None,
    /// The sum of squares of each feature.
    Norms,
    /// `X^T X`.
    Gram,
}

/// Statistics of the inputs of matrices that share them.
#[derive(Debug)]
pub struct Inputs {
    n: usize,
    tokens: usize,
    squares: Vec<f64>,
    gram: Option<Gram>,
    factor: OnceLock<Factor>,
}

/// The columns' order, and the factor of the inverse of `X^T X` in this order (see [`Gram::inverse_factor`]).
#[derive(Debug)]
pub struct Factor {
    /// The column at each position of the order.
    pub order: Vec<usize>,
    /// `[n][n]`, upper triangular.
    pub u: Vec<f32>,
    /// The damping: the numbers that were added to the diagonal, by column.
    pub damping: Vec<f32>,
}

impl Inputs {
    /// Empty statistics for layers of `n` in features.
    pub fn new(n: usize, wanted: Statistics) -> Self {
        Self {
            n,
            tokens: 0,
            squares: if wanted == Statistics::Norms { vec![0.0; n] } else { Vec::new() },
            gram: (wanted == Statistics::Gram).then(|| Gram::new(n)),
            factor: OnceLock::new(),
        }
    }

    /// Adds the tokens `x`, `[tokens][n]`.
    ///
    /// # Errors
    /// When an input is NaN or infinite, or memory cannot be had.
    pub fn add(&mut self, exec: Exec<'_>, x: &[f32]) -> Result<()> {
        if !x.iter().all(|x| x.is_finite()) {
            return Err(Error::bad_input("a calibration input is NaN or infinite"));
        }
        self.tokens += x.len() / self.n;
        self.factor = OnceLock::new();
        if let Some(gram) = &mut self.gram {
            gram.add(exec, x)?;
        }
        if !self.squares.is_empty() {
            for row in x.chunks_exact(self.n) {
                self.squares.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
            }
        }
        Ok(())
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The Euclidean norm of each feature over all tokens; all 1 if no statistics are gathered.
    pub fn norms(&self) -> Vec<f32> {
        match &self.gram {
            Some(gram) => gram.diagonal().into_iter().map(f32::sqrt).collect(),
            None if self.squares.is_empty() => vec![1.0; self.n],
            None => self.squares.iter().map(|sum| sum.sqrt() as f32).collect(),
        }
    }

    /// `X^T X`, if it is gathered.
    pub fn gram(&self) -> Option<&Gram> {
        self.gram.as_ref()
    }

    /// The factor for columns in the order that `order` gives for the diagonal of `X^T X`, with `damping`.
    /// Computed at the first call; matrices with the same inputs share it.
    ///
    /// # Panics
    /// `X^T X` is not gathered.
    pub fn factor(&self, pool: &Pool, damping: Damping, order: impl FnOnce(&[f32]) -> Vec<usize>) -> &Factor {
        self.factor.get_or_init(|| {
            let gram = self.gram.as_ref().expect("X^T X was asked for");
            let order = order(&gram.diagonal());
            let (u, damping) = gram.inverse_factor(pool, &order, damping);
            Factor { order, u, damping }
        })
    }
}
