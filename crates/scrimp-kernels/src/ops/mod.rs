//! Element-wise and row-wise operations between the matrix products, for one row at a time.
//!
//! Reductions have a fixed order, so every level gives the same bits. `rows` and [`logits`] are plain loops; all others are
//! written over the level's vectors, and finish lengths that are no multiple of 16 with a zero-padded vector.

mod bidirectional;
mod delta;
pub mod fit;
mod gate;
pub mod gemm_f32;
pub mod logits;
mod norm;
mod rope;
mod rows;
mod scan;
mod sigmoid;
mod state_chunk;

pub use bidirectional::{BidirectionalShape, Qkv, bidirectional};
pub use delta::{DeltaInputs, DeltaShape, DeltaWeights, gated_delta};
pub use gate::{CLAMP, CLAMPED_SLOPE, Gate, gated, gelu, scale, softcap};
pub use norm::{LayerNorm, RmsNorm};
pub use rope::{RopeTable, rotate_adjacent, rotate_halves};
pub use rows::{add_products, add_scaled, dot, multiply};
pub use scan::{ScanShape, ScanWeights, selective_scan};
pub use sigmoid::sigmoid_gate;
pub use state_chunk::StateChunk;

/// Copies up to 16 elements into a vector's array, the rest zero.
#[inline(always)]
fn padded(x: &[f32]) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    lanes[..x.len()].copy_from_slice(x);
    lanes
}
