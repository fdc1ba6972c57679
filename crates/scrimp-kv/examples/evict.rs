//! A sequence with one layer: append tokens, attend, compress the cache to a quarter, attend again.
//!
//! `cargo run --release -p scrimp-kv --example evict`
#![allow(clippy::print_stdout)]

use scrimp_base::SplitMix64;
use scrimp_kernels::{Exec, Pool, SimdLevel};
use scrimp_kv::{
    AttentionInputs, AttentionScratch, KvCache, KvConfig, Queries,
    compress::{Budget, Compression, Crush},
    policy::policy,
};

const HEAD_DIM: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const TOKENS: usize = 512;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::new(2)?;
    let exec = Exec { pool: &pool, level: SimdLevel::detect() };
    let cache = KvCache::new(KvConfig::new(HEAD_DIM, KV_HEADS, vec![None]))?;

    // The keys, values and queries of a model, after RoPE; here random numbers.
    let mut random = SplitMix64::new(1);
    let mut rows = |n: usize| -> Vec<f32> { (0..n * HEAD_DIM).map(|_| random.next_f32() - 0.5).collect() };
    let (k, v) = (rows(TOKENS * KV_HEADS), rows(TOKENS * KV_HEADS));
    let q = rows(TOKENS * HEADS);

    let mut how = Compression::new(policy("snapkv")?, Budget::Fraction(0.25));
    how.crush = Crush { share: 0.5, ..Crush::default() };

    let mut sequence = cache.sequence();
    let (mut out, mut scratch) = (vec![0.0; q.len()], AttentionScratch::new());
    sequence.append(0, &k, &v, &pool)?;
    // The policy and KVCrush read these scores.
    let scores = Some(how.needs().scores_wanted(TOKENS));
    let inputs = AttentionInputs { scores, ..attention_inputs(&q, &mut out) };
    sequence.attend(0, inputs, exec, &mut scratch)?;
    println!("{} tokens per KV head, {} bytes", sequence.kept(0, 0), sequence.bytes());

    sequence.compress(&how, how.tokens(TOKENS)?, &pool)?;
    println!("{} tokens per KV head, {} bytes", sequence.kept(0, 0), sequence.bytes());

    let (k, v, q) = (rows(KV_HEADS), rows(KV_HEADS), rows(HEADS));
    let mut out = vec![0.0; q.len()];
    sequence.append(0, &k, &v, &pool)?;
    sequence.attend(0, attention_inputs(&q, &mut out), exec, &mut scratch)?;
    println!("token {} attends to {} kept tokens", sequence.len() - 1, sequence.kept(0, 0));
    Ok(())
}

/// The queries of the newest tokens, without scores for a policy.
fn attention_inputs<'a>(q: &'a [f32], out: &'a mut [f32]) -> AttentionInputs<'a> {
    AttentionInputs {
        q,
        queries: Queries::Last,
        out,
        n_heads: HEADS,
        scale: (HEAD_DIM as f32).powf(-0.5),
        softcap: None,
        sinks: None,
        wanted_from: 0,
        scores: None,
    }
}
