//! Settings for a memory limit: the weights and the KV cache with the least loss increase together.
//!
//! ```text
//! for each setting of the cache c:   KL_c and bytes_c are measured on a text              (cache)
//!     room for the weights:          memory - working memory - bytes_c of all sequences    (memory)
//!     the best weights of that size: KL_w, the original where it fits                      (crate::ParetoFront)
//! choose:                            least KL_w + KL_c
//! ```
//! Measuring weights takes longer than measuring caches, so weights are measured only if smaller caches do not suffice.
//! Divergences are small, so the divergence of both changes together is about the sum of the two.

pub mod cache;
pub mod memory;

use crate::{ParetoFront, pareto_front::Point};
use cache::Cache;
use memory::Demand;

/// Divergence below which the search ends, nats per token: any useful compression of weights has more.
pub const NEGLIGIBLE: f64 = 0.02;

/// Weights that fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weights {
    /// The original weights.
    Original {
        /// Bytes of the model's files.
        bytes: u64,
    },
    /// Compressed to a file of at most `target` bytes.
    Compressed {
        /// The target size in bytes.
        target: u64,
        /// The predicted size and loss increase.
        expected: Point,
    },
}

impl Weights {
    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Original { bytes } => *bytes,
            Self::Compressed { expected, .. } => expected.bytes,
        }
    }

    /// Divergence from the original's predictions, nats per token.
    pub fn kl(&self) -> f64 {
        match self {
            Self::Original { .. } => 0.0,
            Self::Compressed { expected, .. } => expected.kl,
        }
    }
}

/// A cache, and the best weights beside it.
#[derive(Debug, Clone)]
pub struct Setting {
    /// How the weights are stored.
    pub weights: Weights,
    /// How the cache is stored.
    pub cache: Cache,
    /// Peak bytes of the caches of all sequences.
    pub kv_bytes: u64,
    /// Bytes of weights, caches and everything else.
    pub bytes: u64,
}

impl Setting {
    /// The predicted divergence of weights and cache together, nats per token.
    pub fn kl(&self) -> f64 {
        self.weights.kl() + self.cache.kl
    }
}

/// The original weights with `cache`, if both fit.
pub fn original(demand: &Demand, original: u64, cache: &Cache) -> Option<Setting> {
    setting(demand, cache, |room| (original <= room).then_some(Weights::Original { bytes: original }))
}

/// For each cache on the Pareto front of `caches`, the best weights that fit beside it, sorted by divergence, then by
/// size. Empty if nothing fits.
pub fn settings(
    demand: &Demand,
    original: u64,
    frontier: Option<&ParetoFront>,
    caches: &[Cache],
) -> Vec<Setting> {
    let weights = |room| {
        let compressed = || {
            let expected = frontier?.at(room)?;
            Some(Weights::Compressed { target: room, expected })
        };
        if original <= room { Some(Weights::Original { bytes: original }) } else { compressed() }
    };
    // A cache that is not smaller than another one and has a larger divergence is not on the front.
    let useless = |cache: &Cache| {
        let better = |other: &Cache| {
            let (bytes, others) = (demand.kv_bytes(cache), demand.kv_bytes(other));
            others <= bytes && other.kl <= cache.kl && (others < bytes || other.kl < cache.kl)
        };
        caches.iter().any(better)
    };
    let useful = caches.iter().filter(|cache| !useless(cache));
    let mut settings: Vec<_> = useful.filter_map(|cache| setting(demand, cache, weights)).collect();
    settings.sort_by(|a, b| a.kl().total_cmp(&b.kl()).then(a.bytes.cmp(&b.bytes)));
    settings
}

fn setting(demand: &Demand, cache: &Cache, weights: impl FnOnce(u64) -> Option<Weights>) -> Option<Setting> {
    let kv_bytes = demand.kv_bytes(cache);
    let beside = kv_bytes + demand.working_bytes;
    let weights = weights(demand.memory.checked_sub(beside)?)?;
    Some(Setting { weights, cache: cache.clone(), kv_bytes, bytes: weights.bytes() + beside })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache::tests::cache;

    #[test]
    fn the_least_divergence_that_fits() {
        let demand =
            |memory| Demand { memory, sequences: 4, whole_bytes: 100, piece_bytes: 10, working_bytes: 50 };
        let caches =
            [cache("bf16", None, 1.0, 0.0), cache("int8", None, 0.5, 0.01), cache("int4", None, 0.25, 0.2)];
        let best = |memory| {
            let best = settings(&demand(memory), 1000, None, &caches).into_iter().next();
            best.map(|s| (s.cache.format.to_string(), s.kv_bytes, s.bytes))
        };
        assert_eq!(best(2000), Some(("bf16".into(), 400, 1450)));
        assert_eq!(best(1450), Some(("bf16".into(), 400, 1450)));
        // 4 packed caches, and a piece of a prompt that is not packed yet.
        assert_eq!(best(1449), Some(("int8".into(), 205, 1255)));
        assert_eq!(best(1254), Some(("int4".into(), 107, 1157)));
        assert_eq!(best(1156), None);
        assert!(original(&demand(1450), 1000, &caches[0]).is_some());
        assert!(original(&demand(1449), 1000, &caches[0]).is_none());
        assert!(settings(&demand(10), 1000, None, &caches).is_empty());
        // One that takes more and loses more is not offered; nor is one that drops tokens, for a single conversation.
        let worse =
            [caches[1].clone(), cache("bf16", None, 0.6, 0.02), cache("bf16", Some(0.25), 0.25, 0.05)];
        assert_eq!(settings(&demand(9999), 1000, None, &worse).len(), 2);
        let one = Demand { sequences: 1, ..demand(9999) };
        assert_eq!(settings(&one, 1000, None, &worse).len(), 1);
    }
}
