//! Paged KV cache: block pool, block tables, storage formats, policies.
//!
//! ```text
//! KvCache            shapes, format, memory of all sequences
//!  └ Sequence        one text: for each layer ...
//!     └ HeadTable    ... and KV head, its block table: blocks in order, positions, biases
//!        └ Block     a K page, a V page and perhaps a bias per token, shared by reference count
//! ```
//!
//! With a packed format ([`KvFormat`]) old blocks are replaced by packed ones; the newest tokens stay in bf16.
//!
//! Invariants: a page with more than one owner is never written (an append copies it first); every layer of a sequence
//! knows the same next position between forward passes; kept positions of a head are strictly increasing; a failed
//! operation changes nothing.
//!
//! Entry points: [`KvCache::new`] and [`KvCache::sequence`]; [`Sequence::append`] and [`Sequence::attend`] for each layer of a forward
//! pass; [`Sequence::fork`], [`Sequence::truncate`] and [`Sequence::compress`] between them; [`policy::Policy`] to decide what is kept.
//!
//! A policy says how important each token is. This one keeps every third token of a model with one layer, next to the first and the last one, which are
//! kept whatever it says:
//!
//! ```
//! use scrimp_kernels::Pool;
//! use scrimp_kv::{
//!     KvCache, KvConfig, KvError,
//!     compress::{Budget, Compression},
//!     policy::{LayerView, Needs, Policy, PolicyChoice},
//! };
//!
//! /// Every third token.
//! #[derive(Debug)]
//! struct Thirds;
//!
//! impl Policy for Thirds {
//!     fn name(&self) -> &'static str {
//!         "thirds"
//!     }
//!     fn about(&self) -> &'static str {
//!         "every third token"
//!     }
//!     fn needs(&self) -> Needs {
//!         Needs::NONE
//!     }
//!     fn score(&self, view: &LayerView<'_>, kv_head: usize, out: &mut [f32]) {
//!         for (index, score) in out.iter_mut().enumerate() {
//!             *score = if view.position(kv_head, index) % 3 == 0 { 1.0 } else { 0.0 };
//!         }
//!     }
//! }
//!
//! # fn main() -> Result<(), KvError> {
//! let (head_dim, n_kv_heads) = (8, 2);
//! let cache = KvCache::new(KvConfig {
//!     head_dim,
//!     n_kv_heads,
//!     windows: vec![None],
//!     format: "bf16".parse()?,
//!     page_tokens: 64,
//!     limit: None,
//!     rewind: 0,
//! })?;
//! let pool = Pool::new(2).expect("threads");
//! let mut sequence = cache.sequence();
//! let rows = vec![1.0; 12 * n_kv_heads * head_dim];
//! sequence.append(0, &rows, &rows, &pool)?;
//!
//! let policy = PolicyChoice { policy: &Thirds, shared_budget: false };
//! let mut how = Compression::new(policy, Budget::Tokens(5));
//! (how.sinks, how.recent) = (1, Some(1));
//! sequence.compress(&how, how.tokens(sequence.len())?, &pool)?;
//! let positions: Vec<_> = (0..sequence.kept(0, 1)).map(|i| sequence.position(0, 1, i)).collect();
//! assert_eq!(positions, [0, 3, 6, 9, 11]);
//! assert_eq!(sequence.len(), 12, "tokens of the text, kept or not");
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod attention_scores;
mod batch;
mod block_pool;
mod block_table;
mod cache;
mod causal_view;
pub mod compress;
mod error;
mod format;
pub mod policy;
mod sequence;

pub use attention_scores::{PassScores, StatsWanted};
pub use batch::{BatchEntry, attend_all};
pub use block_pool::BlockPool;
pub use block_table::Turn;
pub use cache::{KvCache, KvConfig};
pub use error::KvError;
pub use format::KvFormat;
pub use scrimp_kernels::attention::{
    AttentionScratch, ColumnStats, PackedKind, Packing, PageGeometry, Scope, Sparse, Storage, StorageKind,
    storage::{STORAGES, packing::PACKINGS, storage},
};
pub use sequence::{AttentionInputs, PARALLEL_TOKENS, Queries, Sequence};
