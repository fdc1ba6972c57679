//! A paged KV cache with eviction policies, KVCrush and packed storage formats.
//!
//! ```text
//! KvCache            shapes, format and block pool of all sequences
//!  └ Sequence        one text: for each layer ...
//!     └ BlockTable   ... and KV head, the blocks in order, positions and biases
//!        └ Block     a K page, a V page and optional biases, shared by reference count
//! ```
//!
//! With a packed format ([`KvFormat`]) packed blocks replace old blocks; the newest tokens stay in bf16.
//!
//! Invariants:
//! - A page with more than one owner is never written: an append copies it first.
//! - Between forward passes all layers of a sequence have the same next position.
//! - The positions of a head's kept tokens are strictly increasing.
//!
//! Entry points: [`KvCache::new`] and [`KvCache::sequence`]; [`Sequence::append`] and [`Sequence::attend`] for each
//! layer of a forward pass; [`Sequence::fork`], [`Sequence::truncate`] and [`Sequence::compress`] between forward
//! passes; [`policy::Policy`] for a new eviction policy.
//!
//! A policy scores each token. This one keeps every third token of a model with one layer, beside one sink and one
//! recent token:
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
//! let cache = KvCache::new(KvConfig::new(head_dim, n_kv_heads, vec![None]))?;
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
//! assert_eq!(sequence.len(), 12, "the length counts dropped tokens");
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod attention_scores;
mod batch;
mod block;
mod block_pool;
mod block_table;
mod cache;
mod causal_view;
pub mod compress;
mod error;
mod format;
pub mod policy;
mod sequence;
mod wire;

pub use attention_scores::{PostPrefillScores, ScoresWanted};
pub use batch::{BatchEntry, attend_all};
pub use block_pool::BlockPool;
pub use cache::{KvCache, KvConfig, KvHeads};
pub use compress::{FutureQueries, LayerQueries};
pub use error::KvError;
pub use format::KvFormat;
pub use scrimp_kernels::attention::{
    AccumulatedScores, AttentionScratch, PackedKind, Packing, PageGeometry, Sparse, Storage, StorageKind,
    storage::{STORAGES, packing::PACKINGS, storage},
};
pub use sequence::{ApplyRope, AttentionInputs, Compressing, PARALLEL_TOKENS, Queries, Sequence, States};
pub use wire::{Input, LoadError};
