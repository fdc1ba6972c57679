//! Every level and format against attention in f64, on odd shapes.

use super::{
    qk_pv::ExpSumArgs,
    storage::{STORAGES, packing::PACKINGS},
    tables::Kernels,
    *,
};
use crate::{arch::SimdLevel, exec::Pool};
use half::bf16;
use proptest::prelude::*;

/// A layer's cache in the simplest form.
struct Cache {
    /// `[kv_head][page]`: K, V and bias.
    pages: Vec<Vec<TestPage>>,
    /// How pages are packed.
    packed: Vec<Option<PackedKind>>,
    g: PageGeometry,
    n_keys: Vec<usize>,
    visible: Vec<Range<usize>>,
}

type TestPage = (Aligned, Aligned, Option<Vec<f32>>);

/// Bytes that start at a multiple of 64.
struct Aligned(Vec<u8>, usize, usize);

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + 64];
        let offset = bytes.as_ptr().align_offset(64);
        Self(bytes, offset, len)
    }
    fn get(&self) -> &[u8] {
        &self.0[self.1..self.1 + self.2]
    }
    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.0[self.1..self.1 + self.2]
    }
}

impl KvView for Cache {
    fn n_keys(&self, kv_head: usize) -> usize {
        self.n_keys[kv_head]
    }
    fn page(&self, kv_head: usize, index: usize) -> PageView<'_> {
        let (k, v, bias) = &self.pages[kv_head][index];
        PageView { k: k.get(), v: v.get(), bias: bias.as_deref(), packed: self.packed[index] }
    }
    fn has_bias(&self, kv_head: usize) -> bool {
        self.pages[kv_head].iter().any(|p| p.2.is_some())
    }
    fn visible(&self, kv_head: usize, token: usize) -> Range<usize> {
        let keys = self.visible[token].clone();
        keys.start.min(self.n_keys[kv_head])..keys.end.min(self.n_keys[kv_head])
    }
}

/// A problem: shapes, inputs, and the cache that holds `k` and `v` (`[kv_head][key][dim]`).
struct Problem {
    n_tokens: usize,
    group: usize,
    n_kv_heads: usize,
    q: Vec<f32>,
    k: Vec<Vec<Vec<f32>>>,
    v: Vec<Vec<Vec<f32>>>,
    bias: Option<Vec<f32>>,
    cache: Cache,
    format: Format,
    scale: f32,
    softcap: Option<f32>,
    sinks: Option<Vec<f32>>,
}

/// A format of plain pages, and how those that are full are packed, except every fourth.
type Format = (&'static dyn Storage, Option<PackedKind>);

fn formats() -> impl Iterator<Item = Format> {
    let packed = PACKINGS.into_iter().map(|packing| (STORAGES[2], Some(packing)));
    STORAGES.into_iter().map(|storage| (storage, None)).chain(packed)
}

fn name((storage, packing): Format) -> &'static str {
    packing.map_or(storage.name(), |p| p.packing().name())
}

/// Numbers that look random, in -1..1.
pub(super) fn noise(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*seed >> 40) as f32 / (1_u32 << 23) as f32) - 1.0
}

#[derive(Debug)]
struct Shape {
    n_tokens: usize,
    group: usize,
    n_kv_heads: usize,
    head_dim: usize,
    page_tokens: usize,
    n_keys: usize,
    window: Option<usize>,
    biased: bool,
    softcap: Option<f32>,
    sinks: bool,
}

/// Packs keys and values, and replaces them by the numbers that are read.
fn pack_page(packing: &dyn Packing, g: PageGeometry, pages: [&mut [u8]; 2], rows: [&mut [Vec<f32>]; 2]) {
    let ([k_page, v_page], [k, v]) = (pages, rows);
    packing.pack_k(g, &k.concat(), k_page);
    packing.pack_v(g, &v.concat(), v_page);
    for (slot, (k, v)) in k.iter_mut().zip(v).enumerate() {
        packing.read_k(g, k_page, slot, k);
        packing.read_v(g, v_page, slot, v);
    }
}

/// Writes keys and values row by row, and replaces them by the numbers that are read.
fn write_page(storage: &dyn Storage, g: PageGeometry, pages: [&mut [u8]; 2], rows: [&mut [Vec<f32>]; 2]) {
    let ([k_page, v_page], [k, v]) = (pages, rows);
    for (slot, (k, v)) in k.iter_mut().zip(v).enumerate() {
        storage.write_k(g, k_page, PageRows { slot, n: 1, rows: k, stride: g.head_dim });
        storage.write_v(g, v_page, PageRows { slot, n: 1, rows: v, stride: g.head_dim });
        storage.read_k(g, k_page, slot, k);
        storage.read_v(g, v_page, slot, v);
    }
}

fn problem(shape: &Shape, format: Format, mut seed: u64) -> Problem {
    let (storage, packing) = format;
    let g = PageGeometry { page_tokens: shape.page_tokens, head_dim: shape.head_dim };
    let n_pages = shape.n_keys.div_ceil(g.page_tokens).max(1);
    let seed = &mut seed;
    let q = (0..shape.n_tokens * shape.group * shape.n_kv_heads * g.head_dim)
        .map(|_| 3.0 * noise(seed))
        .collect();
    let mut rows = || -> Vec<Vec<Vec<f32>>> {
        (0..shape.n_kv_heads)
            .map(|_| (0..shape.n_keys).map(|_| (0..g.head_dim).map(|_| noise(seed)).collect()).collect())
            .collect()
    };
    let (mut k, mut v) = (rows(), rows());
    let packing_of =
        |page: usize| packing.filter(|_| (page + 1) * g.page_tokens <= shape.n_keys && page % 4 != 3);
    let bias = shape.biased.then(|| {
        (0..shape.n_keys)
            .map(|i| match i % 5 {
                0 => f32::NEG_INFINITY,
                1 => 0.0,
                _ => (1.0 + 10.0 * noise(seed).abs()).ln(),
            })
            .collect::<Vec<f32>>()
    });
    let mut pages = Vec::new();
    for head in 0..shape.n_kv_heads {
        let mut of_head = Vec::new();
        for page in 0..n_pages {
            let bytes = packing_of(page).map_or([storage.page_bytes(g); 2], |p| p.packing().page_bytes(g));
            let [mut kp, mut vp] = bytes.map(Aligned::new);
            let keys = page * g.page_tokens..((page + 1) * g.page_tokens).min(shape.n_keys);
            let (k, v) = (&mut k[head][keys.clone()], &mut v[head][keys]);
            match packing_of(page) {
                Some(kind) => pack_page(kind.packing(), g, [kp.get_mut(), vp.get_mut()], [k, v]),
                None => write_page(storage, g, [kp.get_mut(), vp.get_mut()], [k, v]),
            }
            let bias = bias.as_ref().filter(|_| page % 2 == 0).map(|b| {
                let key = |slot| page * g.page_tokens + slot;
                (0..g.page_tokens).map(|slot| b.get(key(slot)).copied().unwrap_or(0.0)).collect()
            });
            of_head.push((kp, vp, bias));
        }
        pages.push(of_head);
    }
    // Biases stand on every second page only.
    let bias = bias.map(|mut b| {
        b.iter_mut().enumerate().filter(|(i, _)| i / g.page_tokens % 2 == 1).for_each(|(_, x)| *x = 0.0);
        b
    });
    let visible = (0..shape.n_tokens).map(|t| {
        let end = (shape.n_keys + t + 1).saturating_sub(shape.n_tokens);
        shape.window.map_or(0, |w| end.saturating_sub(w))..end
    });
    let packed = (0..n_pages).map(packing_of).collect();
    let cache =
        Cache { pages, packed, g, n_keys: vec![shape.n_keys; shape.n_kv_heads], visible: visible.collect() };
    Problem {
        n_tokens: shape.n_tokens,
        group: shape.group,
        n_kv_heads: shape.n_kv_heads,
        q,
        k,
        v,
        bias,
        cache,
        format,
        scale: 1.0 / (shape.head_dim as f32).sqrt(),
        softcap: shape.softcap,
        sinks: shape.sinks.then(|| (0..shape.group * shape.n_kv_heads).map(|_| 3.0 * noise(seed)).collect()),
    }
}

impl Problem {
    fn args(&self) -> AttentionArgs<'_> {
        AttentionArgs {
            storage: self.format.0.kind(),
            geometry: self.cache.g,
            n_tokens: self.n_tokens,
            n_heads: self.group * self.n_kv_heads,
            n_kv_heads: self.n_kv_heads,
            q: &self.q,
            kv: &self.cache,
            scale: self.scale,
            softcap: self.softcap,
            sinks: self.sinks.as_deref(),
            wanted_from: 0,
        }
    }

    fn run(
        &self,
        level: SimdLevel,
        stats: Option<(ScoresRequest, &mut AccumulatedScores)>,
        pool: &Pool,
    ) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.q.len()];
        attend(Exec { pool, level }, &self.args(), &mut out, stats, &mut AttentionScratch::new());
        out
    }

    /// Attention and its column sums (all, from token `recent`, last) and maxima, in f64.
    fn exact(&self, recent: usize) -> (Vec<f64>, [Vec<Vec<f64>>; 4]) {
        let (dim, n_heads) = (self.cache.g.head_dim, self.group * self.n_kv_heads);
        let mut out = vec![0.0; self.q.len()];
        let mut sums: [Vec<Vec<f64>>; 4] =
            std::array::from_fn(|_| vec![vec![0.0; self.cache.n_keys[0]]; n_heads]);
        for token in 0..self.n_tokens {
            for head in 0..n_heads {
                let (k, v) = (&self.k[head / self.group], &self.v[head / self.group]);
                let at = (token * n_heads + head) * dim;
                let q: Vec<f64> = self.q[at..at + dim].iter().map(|&x| f64::from(x)).collect();
                // Pages of bf16 take queries in bf16.
                let rounded: Vec<f64> =
                    self.q[at..at + dim].iter().map(|&x| bf16::from_f32(x).to_f64()).collect();
                let page_tokens = self.cache.g.page_tokens;
                let is_rounded = |key: usize| {
                    self.format.0.kind() == StorageKind::Bf16
                        && !matches!(
                            self.cache.packed[key / page_tokens],
                            Some(PackedKind::Int8 | PackedKind::Int4)
                        )
                };
                let visible = self.cache.visible(head / self.group, token);
                let score = |key: usize| {
                    let q = if is_rounded(key) { &rounded } else { &q };
                    let dot: f64 = q.iter().zip(&k[key]).map(|(&q, &k)| q * f64::from(k)).sum();
                    let s = dot * f64::from(self.scale);
                    let s = self.softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh());
                    s + self.bias.as_ref().map_or(0.0, |b| f64::from(b[key]))
                };
                let scores: Vec<f64> = visible.clone().map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                if max == f64::NEG_INFINITY {
                    continue;
                }
                let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sink = self.sinks.as_ref().map_or(0.0, |sinks| (f64::from(sinks[head]) - max).exp());
                let total = p.iter().sum::<f64>() + sink;
                for (key, p) in visible.zip(p) {
                    let p = p / total;
                    for d in 0..dim {
                        out[at + d] += p * f64::from(v[key][d]);
                    }
                    sums[0][head][key] += p;
                    sums[1][head][key] += if token >= recent { p } else { 0.0 };
                    sums[2][head][key] += if token + 1 == self.n_tokens { p } else { 0.0 };
                    sums[3][head][key] = f64::max(sums[3][head][key], p);
                }
            }
        }
        (out, sums)
    }

    /// Largest error that a format may have against [`Problem::exact`], values being at most 1.
    fn tolerance(&self, level: SimdLevel) -> f64 {
        match self.format.0.kind() {
            // Queries and what is read from a page are rounded, too.
            StorageKind::Bf16 if self.format.1.is_some() && level.has_amx() => 2e-2,
            StorageKind::Bf16 => 4e-3,
            _ => 1e-5,
        }
    }

    fn check(&self, pool: &Pool) {
        let recent = self.n_tokens.saturating_sub(3);
        let (exact, sums) = self.exact(recent);
        let mut scalar: Option<Vec<f32>> = None;
        for level in SimdLevel::supported() {
            let what = format!("{level} {}", name(self.format));
            let plain = self.run(level, None, pool);
            for (i, (&x, &y)) in plain.iter().zip(&exact).enumerate() {
                assert!(
                    (f64::from(x) - y).abs() <= self.tolerance(level),
                    "{what}: out[{i}] is {x}, should be {y}"
                );
            }
            if let Some(scalar) = &scalar {
                let between =
                    self.tolerance(level) / if self.format.0.kind() == StorageKind::Bf16 { 2.0 } else { 1.0 };
                for (x, y) in plain.iter().zip(scalar) {
                    assert!(f64::from((x - y).abs()) <= between, "{what}: {x}, scalar {y}");
                }
            }
            let request = ScoresRequest {
                sum: true,
                recent_from: Some(recent),
                last: true,
                peak: true,
                per_kv_head: false,
            };
            let mut columns = AccumulatedScores::default();
            let with_stats = self.run(level, Some((request, &mut columns)), pool);
            let mut means = AccumulatedScores::default();
            self.run(level, Some((ScoresRequest { per_kv_head: true, ..request }, &mut means)), pool);
            for (x, y) in with_stats.iter().zip(&exact) {
                assert!((f64::from(*x) - y).abs() <= self.tolerance(level), "{what}: {x}, should be {y}");
            }
            let got = [&columns.sum, &columns.recent, &columns.last, &columns.peak];
            for (got, want) in got.into_iter().zip(&sums) {
                for (head, (got, want)) in got.iter().zip(want).enumerate() {
                    assert_eq!(got.len(), want.len());
                    for (key, (&x, &y)) in got.iter().zip(want).enumerate() {
                        let bound = self.tolerance(level) * (1.0 + y);
                        assert!(
                            (f64::from(x) - y).abs() <= bound,
                            "{what}: column {head}.{key} is {x}, not {y}"
                        );
                    }
                }
            }
            let means = [&means.sum, &means.recent, &means.last, &means.peak];
            for (kind, (got, want)) in means.into_iter().zip(&sums).enumerate() {
                assert_eq!(got.len(), self.n_kv_heads);
                for (got, heads) in got.iter().zip(want.chunks(self.group)) {
                    for (key, &x) in got.iter().enumerate() {
                        let of_heads = heads.iter().map(|head| head[key]);
                        let want = match kind {
                            3 => of_heads.fold(0.0, f64::max),
                            _ => of_heads.sum::<f64>() / self.group as f64,
                        };
                        let bound = self.tolerance(level) * (1.0 + want);
                        assert!(
                            (f64::from(x) - want).abs() <= bound,
                            "{what}: mean {key} is {x}, not {want}"
                        );
                    }
                }
            }
            scalar.get_or_insert(plain);
        }
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let dims = prop::sample::select(vec![32_usize, 48, 64, 80, 96, 128, 256, 20]);
    let groups = prop::sample::select(vec![1_usize, 2, 3, 6, 7]);
    let pages = prop::sample::select(vec![16_usize, 32, 48, 64]);
    let window = prop::option::of(1_usize..40);
    (
        1_usize..=30,
        groups,
        1_usize..=2,
        dims,
        pages,
        0_usize..=170,
        window,
        any::<bool>(),
        prop::option::of(1.0_f32..30.0),
        any::<bool>(),
    )
        .prop_map(
            |(n_tokens, group, n_kv_heads, head_dim, page_tokens, before, window, biased, softcap, sinks)| {
                Shape {
                    n_tokens,
                    group,
                    n_kv_heads,
                    head_dim,
                    page_tokens,
                    n_keys: before + n_tokens,
                    window,
                    biased,
                    softcap,
                    sinks,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: scrimp_testkit::cases(24), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_level_and_format_is_close_to_exact(shape in shapes(), seed in any::<u64>()) {
        let pool = Pool::new(2).unwrap();
        for format in formats() {
            problem(&shape, format, seed).check(&pool);
        }
    }
}

const PLAIN: Shape = Shape {
    n_tokens: 1,
    group: 3,
    n_kv_heads: 2,
    head_dim: 64,
    page_tokens: 64,
    n_keys: 1,
    window: None,
    biased: false,
    softcap: None,
    sinks: true,
};

#[test]
fn many_segments_merge() {
    let pool = Pool::new(2).unwrap();
    for (n_tokens, n_keys) in
        [(1, 3 * DECODE_SEGMENT.0 + 5), (2, 2 * DECODE_SEGMENT.0 + 1), (1, DECODE_SEGMENT.0)]
    {
        for format in formats() {
            problem(&Shape { n_tokens, n_keys, n_kv_heads: 1, ..PLAIN }, format, 5).check(&pool);
        }
    }
}

#[test]
fn long_prefill_uses_segments() {
    let pool = Pool::new(2).unwrap();
    let shape = Shape { n_tokens: 9, n_keys: PREFILL_SEGMENT + 300, n_kv_heads: 1, head_dim: 32, ..PLAIN };
    for format in [(STORAGES[2], None), (STORAGES[2], Some(PACKINGS[0]))] {
        problem(&shape, format, 5).check(&pool);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let request =
        ScoresRequest { sum: true, recent_from: Some(30), last: true, peak: true, per_kv_head: false };
    for (n_tokens, n_keys) in [(1, 1000), (70, 300)] {
        for format in formats() {
            let problem = problem(&Shape { n_tokens, n_keys, ..PLAIN }, format, 11);
            let mut results = [1, 2, 5].into_iter().map(|threads| {
                let pool = Pool::new(threads).unwrap();
                let mut columns = AccumulatedScores::default();
                let plain = problem.run(SimdLevel::detect(), None, &pool);
                let with_stats = problem.run(SimdLevel::detect(), Some((request, &mut columns)), &pool);
                (plain, with_stats, columns)
            });
            let first = results.next().unwrap();
            assert!(results.all(|r| r == first));
        }
    }
}

#[test]
fn rows_that_see_nothing_are_zero() {
    let pool = Pool::new(1).unwrap();
    for n_tokens in [1, 40] {
        let mut problem = problem(&Shape { n_tokens, n_keys: 50, ..PLAIN }, (STORAGES[2], None), 1);
        problem.cache.visible[0] = 7..7;
        let out = problem.run(SimdLevel::detect(), None, &pool);
        assert!(out[..6 * 64].iter().all(|&x| x == 0.0));
        problem.cache.visible[0] = 0..0;
        problem.cache.n_keys = vec![0; 2];
        assert!(problem.run(SimdLevel::detect(), None, &pool).iter().all(|&x| x == 0.0));
    }
}

#[test]
fn odd_numbers_do_not_panic_and_nan_shows() {
    let pool = Pool::new(1).unwrap();
    for level in SimdLevel::supported() {
        for format in formats() {
            for (n_tokens, page_tokens) in [(1, 16), (30, 16), (30, 64)] {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE / 2.0] {
                    let mut problem =
                        problem(&Shape { n_tokens, n_keys: 40, page_tokens, ..PLAIN }, format, 3);
                    problem.q[5] = bad;
                    let out = problem.run(level, None, &pool);
                    // Packed pages do not round queries to bf16: the largest number may pass or not.
                    let either = bad == f32::MAX && format.1.is_some();
                    assert!(
                        either
                            || out[..64].iter().any(|x| x.is_nan())
                                == (!bad.is_finite()
                                    || bad == f32::MAX && format.0.kind() == StorageKind::Bf16),
                        "{level} {} {bad}",
                        name(format)
                    );
                    // The other heads and tokens know nothing of it.
                    assert!(out[64..].iter().all(|x| x.is_finite()));
                }
            }
        }
    }
}

#[test]
fn exponentials_are_close() {
    for level in SimdLevel::supported() {
        // One query of head_dim 1 and keys that are scores: p is seen through one-hot values.
        let kernels = Kernels::new(level, StorageKind::F32);
        let block = (kernels.row_kernels)(1);
        for scores in [
            [0.0_f32; 16],
            std::array::from_fn(|i| -(i as f32) * 7.3),
            std::array::from_fn(|i| -(i as f32) / 16.0),
        ] {
            let mut p = scores;
            let mut sum = 0.0;
            let args = ExpSumArgs {
                scores: p.as_mut_ptr(),
                tiles: 1,
                c: std::f32::consts::LOG2_E,
                max: &0.0,
                sum: &mut sum,
            };
            // SAFETY: one tile of one row.
            unsafe { (block.exp_sum)(args) };
            for (s, p) in scores.iter().zip(p) {
                let want = (f64::from(*s) * f64::from(std::f32::consts::LOG2_E)).exp2();
                if want < 1e-37 {
                    assert!(p < 1.2e-37);
                } else {
                    assert!((f64::from(p) / want - 1.0).abs() < 1e-5, "{level}: exp({s}) = {p}, not {want}");
                }
            }
        }
        let mut p = [f32::NEG_INFINITY; 16];
        let mut sum = 1.0;
        let args = ExpSumArgs { scores: p.as_mut_ptr(), tiles: 1, c: 1.0, max: &0.0, sum: &mut sum };
        // SAFETY: one tile of one row.
        unsafe { (block.exp_sum)(args) };
        assert_eq!((p, sum), ([0.0; 16], 0.0));
    }
}
