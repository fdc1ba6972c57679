//! What gathering attention for eviction policies costs: time to first token with and without, in turn.
//!
//! `cargo run --release -p scrimp-llm --example attention_stats MODEL [TOKENS] [ROUNDS]`
#![allow(clippy::print_stdout)]

use scrimp_kv::StatsWanted;
use scrimp_llm::{
    checkpoint::Checkpoint,
    model::{Model, RunOptions},
};
use std::time::Instant;

fn main() -> scrimp_llm::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_default();
    let mut number = |default| args.next().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (n, rounds): (u32, usize) = (number(3072) as u32, number(5));
    let model = Model::load(Checkpoint::open(path.as_ref())?, &RunOptions::default())?;
    let tokens: Vec<u32> = (0..n).map(|i| 300 + (i * 7919) % 20_000).collect();
    let wanted = StatsWanted { sum: true, recent_from: Some(n.saturating_sub(32)), last: true };
    let mut session = model.session();
    let mut ratios = Vec::new();
    for round in 0..=rounds {
        let mut seconds = [0.0; 2];
        for (stats, seconds) in [None, Some(wanted)].into_iter().zip(&mut seconds) {
            session.reset();
            session.gather_attention(stats);
            let start = Instant::now();
            session.forward(&tokens)?;
            *seconds = start.elapsed().as_secs_f64();
        }
        if round > 0 {
            println!(
                "without {:.3} s, with {:.3} s: {:+.2}%",
                seconds[0],
                seconds[1],
                (seconds[1] / seconds[0] - 1.0) * 100.0
            );
            ratios.push(seconds[1] / seconds[0]);
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "median {:+.2}% of the time to first token at {n} tokens",
        (ratios[ratios.len() / 2] - 1.0) * 100.0
    );
    Ok(())
}
