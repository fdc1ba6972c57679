//! Embedding bags over hashed tables: hash, gather, sum and scale in one pass, and the backward pass.
//!
//! A *lookup* is one id of one feature. Its *indices* are row numbers, hashed from the id or given: `num_hashes` for
//! each block of `block_dim` output values. Its rows are summed, scaled and added to its *bag*, the output.
//!
//! | file | content |
//! |---|---|
//! | `hash.rs` | the hash, and from it the indices |
//! | `signs.rs` | a sign for each eight values of a lookup |
//! | `table.rs` | rows in f32, bf16, int8 and int4 |
//! | `gather.rs` | the sums of one lookup |
//! | `lookup.rs` | batches of lookups, in parallel |
//! | `ring.rs` | the fast path of `lookup.rs` for common shapes |
//! | `interaction.rs` | dot products of the vectors of a sample |
//! | `backward.rs` | gradients of rows, and optimizers |
//! | `dots.rs` | gradients of weights and scales |

mod backward;
mod dots;
mod gather;
mod hash;
mod interaction;
mod lookup;
mod ring;
mod signs;
mod table;
#[cfg(test)]
mod tests;

pub use backward::{Backward, Gradients, Optimizer, SparseGradients, TableMut};
pub use dots::dots;
pub use hash::{IdHash, MAX_ROWS, RowRange};
pub use interaction::{MAX_VECTORS, PairPlaces, VectorGradients, Vectors, pairs, pairs_backward};
pub use lookup::{
    Bags, Batch, Hashing, Indices, MAX_GROUPS, MAX_INDICES, Scales, forward, forward_one, hash_indices,
};
pub use signs::SIGN_WIDTH;
pub use table::{Int4, Table, Values};
