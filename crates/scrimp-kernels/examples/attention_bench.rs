//! Speed of attention on shapes of real models: prefill in GFLOP/s, decode in GB/s of keys and values.
//!
//! `cargo run --release -p scrimp-kernels --example attention_bench [-- [threads] [format] [model] [prefill|decode]]`
//! Best of several runs (with 1 thread: of its CPU time); `SCRIMP_TIER` chooses the SIMD level.
#![allow(clippy::print_stdout)]

use scrimp_kernels::{
    Exec, SimdLevel,
    attention::{
        AccumulatedScores, AttentionArgs, AttentionScratch, KvView, PackedKind, PageGeometry, PageRows,
        PageView, ScoresRequest, Sparse, Storage, attend,
        storage::{bfloat16, packing::PACKINGS, storage},
    },
    exec::{Pool, available_threads},
    mem::{Page, PageMemory},
};
use std::ops::Range;

struct Shape {
    name: &'static str,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

const SHAPES: [Shape; 5] = [
    Shape { name: "smollm2-135m", n_heads: 9, n_kv_heads: 3, head_dim: 64 },
    Shape { name: "gemma3-270m", n_heads: 4, n_kv_heads: 1, head_dim: 256 },
    Shape { name: "qwen2.5-0.5b", n_heads: 14, n_kv_heads: 2, head_dim: 64 },
    Shape { name: "qwen2.5-1.5b", n_heads: 12, n_kv_heads: 2, head_dim: 128 },
    Shape { name: "llama3-8b", n_heads: 32, n_kv_heads: 8, head_dim: 128 },
];

/// How pages are stored.
#[derive(Clone, Copy)]
struct Format {
    storage: &'static dyn Storage,
    packing: Option<PackedKind>,
}

impl Format {
    fn parse(name: &str) -> Option<Self> {
        let packed = || {
            let known = PACKINGS.into_iter().find(|p| p.packing().name() == name);
            let sparse = || {
                let (k, v) = name.strip_prefix("sparse:")?.split_once(',')?;
                Sparse::new(k.parse().ok()?, v.parse().ok()?).map(PackedKind::Sparse)
            };
            let packing = known.or_else(sparse)?;
            Some(Self { storage: bfloat16::STORAGE, packing: Some(packing) })
        };
        storage(name).map(|storage| Self { storage, packing: None }).or_else(packed)
    }

    /// Bytes of a page of keys and of values.
    fn page_bytes(self, g: PageGeometry) -> [usize; 2] {
        self.packing.map_or([self.storage.page_bytes(g); 2], |p| p.packing().page_bytes(g))
    }

    fn write_k(self, g: PageGeometry, page: &mut [u8], rows: &[f32]) {
        match self.packing {
            Some(packing) => packing.packing().pack_k(g, rows, page),
            None => self.storage.write_k(
                g,
                page,
                PageRows { slot: 0, n: g.page_tokens, rows, stride: g.head_dim },
            ),
        }
    }

    fn write_v(self, g: PageGeometry, page: &mut [u8], rows: &[f32]) {
        match self.packing {
            Some(packing) => packing.packing().pack_v(g, rows, page),
            None => self.storage.write_v(
                g,
                page,
                PageRows { slot: 0, n: g.page_tokens, rows, stride: g.head_dim },
            ),
        }
    }
}

/// The cache of one layer.
struct Layer {
    packed: Option<PackedKind>,
    pages: Vec<Vec<(Page, Page)>>,
    n_keys: usize,
    n_tokens: usize,
    page_tokens: usize,
}

impl Layer {
    fn new(shape: &Shape, n_keys: usize, g: PageGeometry, format: Format, memory: &[PageMemory; 2]) -> Self {
        let rows: Vec<f32> =
            (0..g.page_tokens * g.head_dim).map(|i| ((i * 37 % 256) as f32 - 128.0) / 256.0).collect();
        let run = 8;
        // Runs of pages of one kind, as an append of many tokens takes them.
        let head = |_| {
            let n = n_keys.div_ceil(g.page_tokens);
            let mut pages = Vec::new();
            while pages.len() < n {
                let (k, v): (Vec<_>, Vec<_>) = (
                    (0..run).map(|_| memory[0].alloc().unwrap()).collect(),
                    (0..run).map(|_| memory[1].alloc().unwrap()).collect(),
                );
                for (mut k, mut v) in k.into_iter().zip(v) {
                    format.write_k(g, &mut k, &rows);
                    format.write_v(g, &mut v, &rows);
                    pages.push((k, v));
                }
            }
            pages.truncate(n);
            pages
        };
        let pages = (0..shape.n_kv_heads).map(head).collect();
        Self { packed: format.packing, pages, n_keys, n_tokens: 1, page_tokens: g.page_tokens }
    }
}

impl KvView for Layer {
    fn n_keys(&self, _kv_head: usize) -> usize {
        self.n_keys
    }
    fn page(&self, kv_head: usize, index: usize) -> PageView<'_> {
        let (k, v) = &self.pages[kv_head][index];
        debug_assert!(self.page_tokens > 0);
        PageView { k, v, bias: None, packed: self.packed }
    }
    fn has_bias(&self, _kv_head: usize) -> bool {
        false
    }
    fn visible(&self, _kv_head: usize, token: usize) -> Range<usize> {
        0..self.n_keys - self.n_tokens + token + 1
    }
}

/// Seconds; of this thread's CPU time, which other processes do not disturb, or of the wall clock.
fn now(cpu_time: bool) -> f64 {
    let clock = if cpu_time { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn best(cpu_time: bool, times: usize, mut run: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..times {
        let start = now(cpu_time);
        run();
        best = best.min(now(cpu_time) - start);
    }
    best
}

/// Reads all pages and does next to nothing with them.
fn read_all(layers: &[Layer], pool: &Pool) {
    let mut pages: Vec<&Page> = Vec::new();
    for head in layers.iter().flat_map(|l| &l.pages) {
        pages.extend(head.iter().map(|(k, _)| k));
        pages.extend(head.iter().map(|(_, v)| v));
    }
    pool.run(pages.len(), |unit, _| {
        let words: &[u64] = bytemuck::cast_slice(pages[unit]);
        std::hint::black_box(words.iter().fold(0, |sum, &x| sum ^ x));
    });
}

/// Rows into pages, as a prefill appends them.
fn bench_writes(format: Format) {
    let g = PageGeometry { page_tokens: 64, head_dim: 64 };
    let n = 512;
    let rows: Vec<f32> = (0..n * 64).map(|i| i as f32).collect();
    let memory = format.page_bytes(g).map(|bytes| PageMemory::new(bytes, None));
    let mut pages: Vec<_> =
        (0..n / 64).map(|_| (memory[0].alloc().unwrap(), memory[1].alloc().unwrap())).collect();
    let mut times = [f64::MAX; 2];
    for _ in 0..20 {
        for (v, time) in times.iter_mut().enumerate() {
            let new = best(true, 1, || {
                for (i, page) in pages.iter_mut().enumerate() {
                    let from = &rows[i * 64 * 64..][..64 * 64];
                    if v == 0 {
                        format.write_k(g, &mut page.0, from);
                    } else {
                        format.write_v(g, &mut page.1, from);
                    }
                }
            });
            *time = time.min(new);
        }
    }
    let [k, v] = times.map(|t| t * 1e9 / (n * 64) as f64);
    println!("writing keys {k:.2}, values {v:.2} ns per element");
}

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().and_then(|a| a.parse().ok()).unwrap_or_else(available_threads);
    let name = args.next().unwrap_or_else(|| "bf16".to_owned());
    let [filter, part] = [(); 2].map(|()| args.next().unwrap_or_default());
    let format = Format::parse(&name).expect("a format: f32, f16, bf16, int8, int4, sparse or sparse:K,V");
    let level = SimdLevel::from_env().expect("a level of this CPU");
    let pool = Pool::new(threads).expect("threads");
    let exec = Exec { pool: &pool, level };
    let mut scratch = AttentionScratch::new();
    println!("{level}, {threads} threads, {name}");
    if part.is_empty() {
        bench_writes(format);
    }
    for shape in SHAPES.iter().filter(|s| s.name.contains(&filter)) {
        let g = PageGeometry { page_tokens: 64, head_dim: shape.head_dim };
        let memory = format.page_bytes(g).map(|bytes| PageMemory::new(bytes, None));
        let width = shape.n_heads * shape.head_dim;
        let q: Vec<f32> = (0..512 * width).map(|i| ((i * 61 % 512) as f32 - 256.0) / 128.0).collect();
        let mut out = vec![0.0; q.len()];
        let mut attention = |layer: &Layer, stats: Option<(ScoresRequest, &mut AccumulatedScores)>| {
            let args = AttentionArgs {
                storage: format.storage.kind(),
                geometry: g,
                n_tokens: layer.n_tokens,
                n_heads: shape.n_heads,
                n_kv_heads: shape.n_kv_heads,
                q: &q[..layer.n_tokens * width],
                kv: layer,
                scale: 0.05,
                softcap: None,
                sinks: None,
                wanted_from: 0,
            };
            attend(exec, &args, &mut out[..layer.n_tokens * width], stats, &mut scratch);
        };
        for n_keys in [512, 3072, 8192].into_iter().filter(|_| part != "decode") {
            let mut layer = Layer::new(shape, n_keys, g, format, &memory);
            layer.n_tokens = 512;
            let seen: usize = (0..512).map(|t| n_keys - 512 + t + 1).sum();
            let flops = (seen * width * 4) as f64;
            let times = (6e9 / flops) as usize + 3;
            let plain = best(threads == 1, times, || attention(&layer, None));
            let request = ScoresRequest {
                sum: true,
                recent_from: Some(480),
                per_kv_head: true,
                ..ScoresRequest::default()
            };
            let mut columns = AccumulatedScores::default();
            let with = best(threads == 1, times, || attention(&layer, Some((request, &mut columns))));
            println!(
                "{:13} prefill 512 of {n_keys:5}: {:8.0} us  {:6.1} GFLOP/s   with column sums {:+5.1}%",
                shape.name,
                plain * 1e6,
                flops / plain / 1e9,
                (with / plain - 1.0) * 100.0
            );
        }
        for depth in [64_usize, 512, 4096, 16384].into_iter().filter(|_| part != "prefill") {
            let bytes = depth.div_ceil(64) * shape.n_kv_heads * format.page_bytes(g).iter().sum::<usize>();
            // Layers of 256 MB in all, so that nothing is read from a cache (unless the depth is small).
            let hot = std::env::var("HOT").is_ok();
            let layers: Vec<_> = (0..if hot { 1 } else { (256 << 20) / bytes.max(1 << 20) })
                .map(|_| Layer::new(shape, depth, g, format, &memory))
                .collect();
            let time = best(threads == 1, if hot { 100 } else { 8 }, || {
                layers.iter().for_each(|layer| attention(layer, None));
            }) / layers.len() as f64;
            let read = best(threads == 1, 8, || read_all(&layers, &pool)) / layers.len() as f64;
            println!(
                "{:13} decode at {depth:5}: {:8.1} us a layer  {:6.1} GB/s   reading alone {:6.1} GB/s",
                shape.name,
                time * 1e6,
                bytes as f64 / time / 1e9,
                bytes as f64 / read / 1e9
            );
        }
    }
}
