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
//!
//! Entry points: [`KvCache::new`] and [`KvCache::sequence`]; [`Sequence::append`] and [`Sequence::attend`] for each layer of a forward
//! pass; [`Sequence::fork`], [`Sequence::truncate`] and [`Sequence::compress`] between them; [`policy::Policy`] to decide what is kept.
//!
//! Ten tokens of a model with one layer, of which an eviction policy keeps six:
//!
//! ```
//! use scrimp_kernels::threads::Pool;
//! use scrimp_kv::{
//!     KvCache, KvConfig, KvError,
//!     policy::{Kept, LayerView, Needs, Policy},
//!     storage,
//! };
//!
//! /// The first 4 tokens and the newest (StreamingLLM, Xiao et al. 2023).
//! #[derive(Debug)]
//! struct Ends;
//!
//! impl Policy for Ends {
//!     fn name(&self) -> &'static str {
//!         "ends"
//!     }
//!     fn needs(&self) -> Needs {
//!         Needs::default()
//!     }
//!     fn select(&self, view: &LayerView<'_>) -> Vec<Kept> {
//!         let head = |h| {
//!             let (n, sinks) = (view.n_tokens(h), 4.min(view.budget));
//!             let newest = n.saturating_sub(view.budget - sinks).max(sinks.min(n));
//!             Kept { indices: (0..sinks.min(n)).chain(newest..n).map(|i| i as u32).collect(), bias: None }
//!         };
//!         (0..view.n_kv_heads()).map(head).collect()
//!     }
//! }
//!
//! # fn main() -> Result<(), KvError> {
//! let (head_dim, n_kv_heads) = (8, 2);
//! let cache = KvCache::new(KvConfig {
//!     head_dim,
//!     n_kv_heads,
//!     windows: vec![None],
//!     storage: storage("bf16").expect("a known format"),
//!     page_tokens: 64,
//!     limit: None,
//!     rewind: 0,
//! })?;
//! let pool = Pool::new(2).expect("threads");
//! let mut sequence = cache.sequence();
//! let rows = vec![1.0; 10 * n_kv_heads * head_dim];
//! sequence.append(0, &rows, &rows, &pool)?;
//!
//! sequence.compress(0, &Ends, 6)?;
//! let positions: Vec<_> = (0..sequence.kept(0, 1)).map(|i| sequence.position(0, 1, i)).collect();
//! assert_eq!(positions, [0, 1, 2, 3, 8, 9]);
//! assert_eq!(sequence.len(), 10, "tokens of the text, kept or not");
//! # Ok(())
//! # }
//! ```
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
