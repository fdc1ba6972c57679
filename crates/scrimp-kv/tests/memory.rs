//! Memory of a cache: limits, shared pages, sliding windows.

use scrimp_kernels::Pool;
use scrimp_kv::{KvCache, KvConfig, KvError, Sequence, policy::Selection};

const DIM: usize = 64;

fn cache(windows: Vec<Option<usize>>, limit: Option<usize>) -> KvCache {
    KvCache::new(KvConfig {
        head_dim: DIM,
        n_kv_heads: 1,
        window_heads: None,
        windows,
        states: Vec::new(),
        format: "bf16".parse().unwrap(),
        page_tokens: 64,
        limit,
        rewind: 0,
    })
    .unwrap()
}

/// Bytes of a page of keys or values.
const PAGE: usize = 64 * DIM * 2;

fn append(sequence: &mut Sequence, n: usize, pool: &Pool) -> Result<(), KvError> {
    let rows = vec![0.5; n * DIM];
    (0..sequence.n_layers()).try_for_each(|layer| sequence.append(layer, &rows, &rows, pool))
}

#[test]
fn a_limit_is_an_error_and_changes_nothing() {
    let pool = Pool::new(1).unwrap();
    let cache = cache(vec![None, None], Some(6 * PAGE));
    let mut sequence = cache.sequence();
    append(&mut sequence, 64, &pool).unwrap();
    let error = append(&mut sequence, 65, &pool).unwrap_err();
    assert!(matches!(error, KvError::NoMemory { tokens: 65, .. }), "{error}");
    assert!(error.to_string().contains("no room for 65 more tokens"), "{error}");
    assert_eq!((sequence.kept(0, 0), sequence.kept(1, 0)), (64, 64));
    assert_eq!(cache.bytes_in_use(), 4 * PAGE);
    // The first layer takes the last two pages and none are left for the second: the caller truncates both.
    assert!(append(&mut sequence, 1, &pool).is_err());
    assert_eq!((sequence.kept(0, 0), sequence.kept(1, 0)), (65, 64));
    sequence.truncate(64).unwrap();
    assert_eq!(cache.bytes_in_use(), 4 * PAGE);
    sequence.reset();
    append(&mut sequence, 64, &pool).unwrap();
}

#[test]
fn shared_pages_are_copied_only_when_written() {
    let pool = Pool::new(1).unwrap();
    let cache = cache(vec![None], None);
    let mut first = cache.sequence();
    append(&mut first, 100, &pool).unwrap();
    let mut second = first.fork();
    assert_eq!((cache.bytes_in_use(), first.bytes(), second.bytes()), (4 * PAGE, 4 * PAGE, 4 * PAGE));
    assert_eq!((first.ref_cnt(0, 0, 0), first.ref_cnt(0, 0, 1)), (2, 2));
    append(&mut second, 1, &pool).unwrap();
    assert_eq!(cache.bytes_in_use(), 6 * PAGE);
    assert_eq!((first.ref_cnt(0, 0, 0), first.ref_cnt(0, 0, 1), second.ref_cnt(0, 0, 1)), (2, 1, 1));
    // The first sequence is the only owner of its last page now and writes in place.
    append(&mut first, 1, &pool).unwrap();
    assert_eq!(cache.bytes_in_use(), 6 * PAGE);
    drop(first);
    assert_eq!((cache.bytes_in_use(), second.ref_cnt(0, 0, 0)), (4 * PAGE, 1));
}

#[test]
fn sliding_layers_stay_small_and_refuse_truncation_into_dropped_tokens() {
    let pool = Pool::new(1).unwrap();
    let cache = cache(vec![Some(100), None], None);
    let mut sequence = cache.sequence();
    for _ in 0..100 {
        append(&mut sequence, 10, &pool).unwrap();
    }
    assert_eq!(sequence.len(), 1000);
    assert_eq!(sequence.kept(1, 0), 1000);
    assert!(sequence.kept(0, 0) < 100 + 10 + 64, "{}", sequence.kept(0, 0));
    let first = sequence.position(0, 0, 0) as usize;
    sequence.truncate(first + 99).unwrap();
    assert!(matches!(sequence.truncate(first + 98), Err(KvError::Dropped { .. })));
    assert_eq!(sequence.len(), first + 99);
    // Starting over is always possible.
    sequence.reset();
    append(&mut sequence, 10, &pool).unwrap();
    sequence.truncate(0).unwrap();
    assert_eq!(cache.bytes_in_use(), 0);
}

#[test]
fn bad_input_is_an_error() {
    let pool = Pool::new(1).unwrap();
    let cache = cache(vec![None], None);
    let mut sequence = cache.sequence();
    append(&mut sequence, 10, &pool).unwrap();
    assert!(sequence.append(0, &[0.0; 63], &[0.0; 63], &pool).is_err());
    assert!(sequence.append(0, &[0.0; 64], &[0.0; 128], &pool).is_err());
    assert!(sequence.append(1, &[0.0; 64], &[0.0; 64], &pool).is_err());
    let kept = |indices: &[u32], bias: Option<Vec<f32>>| vec![Selection { indices: indices.to_vec(), bias }];
    assert!(sequence.compact(0, &[]).is_err());
    assert!(sequence.compact(0, &kept(&[3, 3], None)).is_err());
    assert!(sequence.compact(0, &kept(&[10], None)).is_err());
    assert!(sequence.compact(0, &kept(&[1], Some(vec![]))).is_err());
    for page_tokens in [0, 8, 1 << 30] {
        assert!(KvCache::new(KvConfig { page_tokens, ..cache.config().clone() }).is_err());
    }
}
