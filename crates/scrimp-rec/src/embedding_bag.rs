//! An embedding bag without a model: sums of the vectors of bags of ids, like `torch.nn.EmbeddingBag`.

use crate::{
    Error, Result,
    encoders::{self, Encoder, EncoderOptions, Exec, IdCounts},
};
use scrimp_kernels::embedding::Optimizer;

/// A compressed embedding of one feature.
///
/// ```
/// use scrimp_kernels::{SimdLevel, Pool};
/// use scrimp_rec::{EmbeddingBag, encoders::{EncoderOptions, Exec}};
///
/// # fn main() -> Result<(), scrimp_rec::Error> {
/// let pool = Pool::new(1).unwrap();
/// let exec = Exec { pool: &pool, level: SimdLevel::detect() };
/// // Vectors of 64 values for any number of ids, in 32 kB.
/// let bag = EmbeddingBag::new(&EncoderOptions::new("memrec", 64, 32_000), 1_000_000)?;
/// // Two bags: the first three ids, and the last one.
/// let sums = bag.forward(exec, &[7, 123_456_789, 7, 42], &[0, 3])?;
/// assert_eq!(sums.len(), 2 * 64);
/// # Ok(())
/// # }
/// ```
pub struct EmbeddingBag {
    encoder: Box<dyn Encoder>,
    dim: usize,
}

impl EmbeddingBag {
    /// A bag with random tables of the size of the options' budget, for about `ids` distinct ids.
    ///
    /// # Errors
    /// The budget is too small, the encoder needs a list of ids (`full`), or an allocation fails.
    pub fn new(options: &EncoderOptions, ids: u64) -> Result<Self> {
        let id_counts = IdCounts { distinct: vec![ids], ..IdCounts::default() };
        let encoder = encoders::build(&encoders::plan(options, &id_counts)?, &[])?;
        Ok(Self { encoder, dim: options.dim })
    }

    /// The sums of the vectors of bags, `[offsets.len(), dim]`. Bag `b` has the ids from `offsets[b]` to before `offsets[b + 1]`;
    /// the last bag has the rest.
    ///
    /// # Errors
    /// Offsets decrease or exceed the number of ids.
    pub fn forward(&self, exec: Exec<'_>, ids: &[u64], offsets: &[usize]) -> Result<Vec<f32>> {
        check(ids, offsets)?;
        let mut out = vec![0.0; offsets.len() * self.dim];
        self.encoder.forward_bags(exec, ids, offsets, &mut out);
        Ok(out)
    }

    /// A step of `optimizer` for `grad`, the gradients of the sums of [`EmbeddingBag::forward`] with the same ids and offsets.
    ///
    /// # Errors
    /// As [`EmbeddingBag::forward`], or `grad` has the wrong size.
    pub fn backward(
        &mut self,
        exec: Exec<'_>,
        ids: &[u64],
        offsets: &[usize],
        grad: &[f32],
        optimizer: Optimizer,
    ) -> Result<()> {
        check(ids, offsets)?;
        if grad.len() != offsets.len() * self.dim {
            return Err(Error::bad_input(format!("{} gradients of {} bags", grad.len(), offsets.len())));
        }
        let Some(&first) = offsets.first() else { return Ok(()) };
        let mut each = Vec::with_capacity((ids.len() - first) * self.dim);
        for (b, &start) in offsets.iter().enumerate() {
            let end = offsets.get(b + 1).copied().unwrap_or(ids.len());
            for _ in start..end {
                each.extend_from_slice(&grad[b * self.dim..(b + 1) * self.dim]);
            }
        }
        self.encoder.backward(exec, &ids[first..], &each, optimizer);
        Ok(())
    }

    /// Size of the tables in bytes.
    pub fn bytes(&self) -> usize {
        self.encoder.bytes()
    }
}

fn check(ids: &[u64], offsets: &[usize]) -> Result<()> {
    if !offsets.is_sorted() || offsets.last().is_some_and(|&last| last > ids.len()) {
        return Err(Error::bad_input(format!("offsets must rise from 0 to {} at most", ids.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrimp_kernels::{Pool, SimdLevel};

    #[test]
    fn bags_are_sums_and_learn() {
        let pool = Pool::new(2).unwrap();
        let exec = Exec { pool: &pool, level: SimdLevel::detect() };
        for name in ["memrec", "hashing", "robe", "qr", "hash-embeddings"] {
            let mut bag = EmbeddingBag::new(&EncoderOptions::new(name, 16, 20_000), 1000).unwrap();
            let ids = [5, 900, 5, 17, u64::MAX];
            let offsets = [0, 3, 3];
            let sums = bag.forward(exec, &ids, &offsets).unwrap();
            let single = bag.forward(exec, &ids, &[0, 1, 2, 3, 4]).unwrap();
            let row = |i: usize| &single[i * 16..(i + 1) * 16];
            for d in 0..16 {
                assert!((sums[d] - row(0)[d] - row(1)[d] - row(2)[d]).abs() < 1e-6);
                assert_eq!(sums[16 + d], 0.0);
                assert!((sums[32 + d] - row(3)[d] - row(4)[d]).abs() < 1e-6);
            }
            // Towards zero.
            for _ in 0..100 {
                let sums = bag.forward(exec, &ids, &offsets).unwrap();
                bag.backward(exec, &ids, &offsets, &sums, Optimizer::Sgd { lr: 0.05 }).unwrap();
            }
            let after = bag.forward(exec, &ids, &offsets).unwrap();
            let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>();
            assert!(norm(&after) < 0.1 * norm(&sums), "{name}: {} {}", norm(&after), norm(&sums));
            assert!(bag.forward(exec, &ids, &[0, 6]).is_err());
            assert!(bag.forward(exec, &ids, &[3, 2]).is_err());
        }
        assert!(EmbeddingBag::new(&EncoderOptions::new("full", 16, 1 << 20), 1000).is_err());
    }
}
