//! The time to compress one layer, by number of tokens: a line of JSON each, and optionally a chart (SVG).
//!
//! `cargo run --release -p scrimp-kv --example compress_bench [CHART.svg]`
//!
//! Nine KV heads with 64 dimensions and random keys and attention scores; policy h2o, a quarter of the tokens kept,
//! half of them representatives. Best of five.
#![allow(clippy::print_stdout)]

use scrimp_base::{AtomicFile, SplitMix64};
use scrimp_kernels::Pool;
use scrimp_kv::{
    AccumulatedScores, KvCache, KvConfig, KvError,
    compress::{Budget, Compression, Crush},
    policy::policy,
};
use std::{fmt::Write as _, path::Path, time::Instant};

const HEADS: usize = 9;
const DIM: usize = 64;
const ROUNDS: usize = 5;

/// The best time to compress `tokens`, in seconds.
fn measure(tokens: usize, share: f64, pool: &Pool) -> Result<f64, KvError> {
    let cache = KvCache::new(KvConfig::new(DIM, HEADS, vec![None]))?;
    let mut random = SplitMix64::new(1);
    let mut sequence = cache.sequence();
    let k: Vec<f32> = (0..tokens * HEADS * DIM).map(|_| random.next_f32() - 0.5).collect();
    sequence.append(0, &k, &k, pool)?;
    // A few tokens receive most of the attention.
    let sum = (0..HEADS).map(|_| (0..tokens).map(|_| random.next_f32().powi(8)).collect()).collect();
    let stats = AccumulatedScores { sum, ..AccumulatedScores::default() };
    sequence.set_accumulated_scores(0, stats, std::iter::once(0..tokens as u32).collect())?;
    let mut how = Compression::new(policy("h2o")?, Budget::Fraction(0.25));
    how.crush = Crush { share, ..Crush::default() };
    let budget = how.tokens(tokens)?;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let mut copy = sequence.fork();
        let start = Instant::now();
        copy.compress(&how, budget, pool)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// A chart of microseconds over tokens, with a line through the origin and the last point.
fn chart(points: &[(usize, f64)]) -> String {
    let (width, height, left, bottom) = (640.0, 400.0, 70.0, 50.0);
    let (last, most) = points.iter().fold((0, 0.0_f64), |(n, t), &(m, u)| (n.max(m), t.max(u)));
    let x = |n: usize| left + (width - left - 20.0) * n as f64 / last as f64;
    let y = |us: f64| (height - bottom) - (height - bottom - 20.0) * us / most;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <path d=\"M{left} 20V{0}H{1}\" fill=\"none\" stroke=\"black\"/>\n\
         <path d=\"M{2} {3}L{4} {5}\" stroke=\"#999\" stroke-dasharray=\"4\"/>\n",
        height - bottom,
        width - 20.0,
        x(0),
        y(0.0),
        x(last),
        y(points.iter().find(|p| p.0 == last).map_or(0.0, |p| p.1)),
    );
    for &(n, us) in points {
        let _ = write!(
            svg,
            "<circle cx=\"{0:.1}\" cy=\"{1:.1}\" r=\"4\" fill=\"#0072b2\"/>\n\
             <text x=\"{0:.1}\" y=\"{2}\" text-anchor=\"middle\">{3}</text>\n\
             <text x=\"{4:.1}\" y=\"{5:.1}\" text-anchor=\"end\">{us:.0}</text>\n",
            x(n),
            y(us),
            height - bottom + 18.0,
            if n >= 4096 { format!("{} K", n / 1024) } else { String::new() },
            x(n) - 8.0,
            y(us) - 6.0,
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">tokens</text>\n\
         <text x=\"16\" y=\"{}\" transform=\"rotate(-90 16 {})\" text-anchor=\"middle\">microseconds, one layer of 9 KV heads</text>\n</svg>\n",
        width / 2.0,
        height - 12.0,
        height / 2.0,
        height / 2.0,
    );
    svg
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::thread::available_parallelism()?.get();
    let pool = Pool::new(threads)?;
    let mut points = Vec::new();
    for tokens in [1024, 2048, 4096, 8192, 16384, 24576, 32768] {
        let [without, with] = [0.0, 0.5].map(|share| measure(tokens, share, &pool));
        let (without, with) = (without? * 1e6, with? * 1e6);
        println!(
            "{{\"tokens\":{tokens},\"heads\":{HEADS},\"threads\":{threads},\"us_without_kvcrush\":{without:.0},\"us\":{with:.0}}}"
        );
        points.push((tokens, with));
    }
    if let Some(path) = std::env::args().nth(1) {
        AtomicFile::write(Path::new(&path), chart(&points).as_bytes())?;
    }
    Ok(())
}
