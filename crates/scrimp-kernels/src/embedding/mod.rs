//! Embedding bags over tables whose rows are found by hashing: hash, gather, sum and scale in one pass, and the way
//! back.
//!
//! A *lookup* is one id of one feature. Its *indices* are row numbers, `num_hashes` for each block of `block_dim`
//! values of its output; hashed from the id or given. Its rows are added up, scaled, and added to its *bag*, the
//! output.
//!
//! | file | what |
//! |---|---|
//! | `hash.rs` | the hash, and from it the indices |
//! | `signs.rs` | a sign for each eight values of a lookup |
//! | `table.rs` | rows in f32, bf16, int8 and int4 |
//! | `gather.rs` | the sums of one lookup |
//! | `lookup.rs` | batches of lookups, in parallel |
//! | `ring.rs` | the same, faster, for the common case |
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
