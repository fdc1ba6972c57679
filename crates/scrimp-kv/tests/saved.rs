//! The bytes of a saved sequence may come from anywhere: reading and attending never panics or leaves the pages.

use proptest::prelude::*;
use scrimp_kernels::{Exec, Pool, SimdLevel};
use scrimp_kv::{
    AttentionInputs, AttentionScratch, Input, KvCache, KvConfig, KvFormat, KvHeads, Queries, Sequence,
};

const DIM: usize = 16;

fn cache(format: &KvFormat) -> KvCache {
    KvCache::new(KvConfig {
        head_dim: DIM,
        n_kv_heads: 2,
        window_heads: Some(KvHeads { count: 1, dim: 2 * DIM }),
        windows: vec![None, Some(20)],
        states: Vec::new(),
        format: *format,
        page_tokens: 16,
        limit: Some(1 << 20),
        rewind: 0,
    })
    .unwrap()
}

fn filled(cache: &KvCache, tokens: usize) -> Sequence {
    let pool = Pool::new(1).unwrap();
    let mut sequence = cache.sequence();
    let rows = scrimp_testkit::numbers(7, tokens * 2 * DIM);
    for layer in 0..2 {
        sequence.append(layer, &rows, &rows, &pool).unwrap();
    }
    sequence.drop_before(1, tokens.saturating_sub(20));
    sequence.pack(&pool).unwrap();
    sequence
}

/// Appends a token and attends to all tokens.
fn use_it(sequence: &mut Sequence) -> Vec<f32> {
    let pool = Pool::new(1).unwrap();
    let (row, mut out) = (scrimp_testkit::numbers(8, 2 * DIM), vec![0.0; 2 * DIM]);
    for layer in 0..2 {
        if sequence.append(layer, &row, &row, &pool).is_err() {
            return out;
        }
        let inputs = AttentionInputs {
            q: &row,
            queries: Queries::Last,
            out: &mut out,
            // The layer with a window has one head of twice the size.
            n_heads: 2 - layer,
            scale: 0.25,
            softcap: None,
            sinks: None,
            wanted_from: 0,
            scores: None,
        };
        let exec = Exec { pool: &pool, level: SimdLevel::detect() };
        sequence.attend(layer, inputs, exec, &mut AttentionScratch::new()).unwrap();
    }
    out
}

fn bytes_of(sequence: &Sequence) -> Vec<u8> {
    let mut bytes = Vec::new();
    sequence.save(&mut bytes).unwrap();
    bytes
}

const FORMATS: [&str; 6] = ["f32", "f16", "bf16", "int8", "int4", "sparse:0.3,0.5"];

#[test]
fn what_was_saved_is_loaded() {
    for name in FORMATS {
        let format: KvFormat = name.parse().unwrap();
        let cache = cache(&format);
        for tokens in [0, 1, 16, 75] {
            let mut sequence = if tokens == 0 { cache.sequence() } else { filled(&cache, tokens) };
            let bytes = bytes_of(&sequence);
            let mut input = Input::new(&bytes[..], bytes.len() as u64);
            let mut loaded = cache.load(&mut input).unwrap();
            assert_eq!((input.remaining(), loaded.len()), (0, tokens));
            assert_eq!(use_it(&mut loaded), use_it(&mut sequence), "{name}, {tokens} tokens");
        }
        assert_eq!(cache.bytes_in_use(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: scrimp_testkit::cases(300), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn changed_bytes_are_harmless(
        format in 0..FORMATS.len(),
        tokens in 1_usize..80,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        torn in any::<bool>(),
    ) {
        let format: KvFormat = FORMATS[format].parse().unwrap();
        let cache = cache(&format);
        let mut bytes = bytes_of(&filled(&cache, tokens));
        for (place, byte) in changes {
            // Half of the changes hit the numbers before the first page.
            let place = if byte % 2 == 0 { place.index(bytes.len()) } else { place.index(60) };
            bytes[place] = byte;
        }
        if torn {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(mut sequence) = cache.load(&mut Input::new(&bytes[..], bytes.len() as u64)) {
            use_it(&mut sequence);
        }
        prop_assert_eq!(cache.bytes_in_use(), 0);
    }
}
