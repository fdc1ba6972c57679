//! Memory that a cache no longer needs returns to the system. The test has its own process, so that it measures its
//! own memory only.
#![cfg(target_os = "linux")]

use scrimp_kernels::Pool;
use scrimp_kv::{KvCache, KvConfig, policy::Selection};

const MIB: usize = 1 << 20;

/// Resident memory of this process in bytes, counted page by page. `statm` and `VmRSS` sum per-processor counters
/// with a delay and can be megabytes off on machines with many processors.
fn resident() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn dropped_and_compacted_memory_returns_to_the_system() {
    let pool = Pool::new(1).unwrap();
    let cache = KvCache::new(KvConfig {
        head_dim: 64,
        n_kv_heads: 1,
        window_heads: None,
        windows: vec![None; 8],
        states: Vec::new(),
        format: "bf16".parse().unwrap(),
        page_tokens: 64,
        limit: None,
        rewind: 0,
    })
    .unwrap();
    let rows = vec![0.5; 512 * 64];
    let before = resident();
    let mut sequence = cache.sequence();
    for _ in 0..64 {
        (0..8).for_each(|layer| sequence.append(layer, &rows, &rows, &pool).unwrap());
    }
    assert_eq!(sequence.bytes(), 64 * MIB);
    let full = resident() - before;
    assert!(full >= 63 * MIB, "{full}");
    // Layer by layer, a quarter of the tokens is kept.
    let len = sequence.kept(0, 0) as u32;
    for layer in 0..8 {
        let kept = Selection { indices: (0..len).filter(|i| i % 4 == 0).collect(), bias: None };
        sequence.compact(layer, &[kept]).unwrap();
    }
    assert_eq!(sequence.bytes(), 16 * MIB);
    let compacted = resident().saturating_sub(before);
    assert!(compacted <= 24 * MIB, "{compacted}");
    drop(sequence);
    let empty = resident().saturating_sub(before);
    assert!(empty <= 4 * MIB, "{empty}");
    assert_eq!(cache.bytes_mapped(), 0);
}
