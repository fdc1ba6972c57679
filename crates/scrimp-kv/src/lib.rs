//! Paged KV cache: block pool, block tables, storage formats, policies.
//!
//! ```text
//! KvCache            shapes, format, memory of all sequences
//!  └ Sequence        one text: for each layer ...
//!     └ HeadTable    ... and KV head, its block table: blocks in order, positions, biases
//!        └ Block     a K page, a V page and perhaps a bias per token, shared by reference count
//! ```
//!
//! Invariants: a page with more than one owner is never written (an append copies it first); every layer of a sequence
//! knows the same next position between forward passes; kept positions of a head are strictly increasing; a failed
//! operation changes nothing.
#![forbid(unsafe_code)]

mod cache;
mod error;
pub mod policy;
mod pool;
mod sequence;
mod table;

pub use cache::{KvCache, KvConfig};
pub use error::KvError;
pub use pool::BlockPool;
pub use scrimp_kernels::attention::{
    AttentionScratch, ColumnStats, PageGeometry, Storage, StorageKind, storage::STORAGES, storage::storage,
};
pub use sequence::{AttentionInputs, Sequence, StatsWanted};
