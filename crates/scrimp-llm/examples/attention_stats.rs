//! The cost of gathering attention for eviction policies: time to first token with and without it, interleaved.
//!
//! `cargo run --release -p scrimp-llm --example attention_stats MODEL [TOKENS] [ROUNDS]`
#![allow(clippy::print_stdout)]

use scrimp_kv::ScoresWanted;
use scrimp_llm::{
    checkpoint::Checkpoint,
    model::{Model, RunOptions},
};
use std::time::Instant;

/// Tokens that go through the model together.
const CHUNK: usize = 512;

fn main() -> scrimp_llm::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_default();
    let mut number = |default| args.next().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (n, rounds): (u32, usize) = (number(3072) as u32, number(5));
    let model = Model::load(Checkpoint::open(path.as_ref())?, &RunOptions::default())?;
    let tokens: Vec<u32> = (0..n).map(|i| 300 + (i * 7919) % 20_000).collect();
    let wanted =
        ScoresWanted { sum: true, recent_from: Some(n.saturating_sub(32)), ..ScoresWanted::default() };
    // A prompt goes through the model in chunks. Each is computed `rounds` times with and without, in turn, and the
    // fastest of either counts: that takes the noise of the machine out.
    let mut seconds = [0.0; 2];
    let mut sessions = [None, Some(wanted)].map(|wanted| {
        let mut session = model.session();
        session.accumulate_scores(wanted);
        session
    });
    for chunk in tokens.chunks(CHUNK) {
        let mut best = [f64::INFINITY; 2];
        for round in 0..rounds {
            for i in [round % 2, 1 - round % 2] {
                let session = &mut sessions[i];
                let len = session.len();
                let start = Instant::now();
                session.forward(chunk)?;
                best[i] = best[i].min(start.elapsed().as_secs_f64());
                if round + 1 < rounds {
                    session.truncate(len);
                }
            }
        }
        println!(
            "{:.1} ms, {:.1} ms: {:+.2}%",
            best[0] * 1e3,
            best[1] * 1e3,
            (best[1] / best[0] - 1.0) * 100.0
        );
        seconds = [seconds[0] + best[0], seconds[1] + best[1]];
    }
    let share = (seconds[1] / seconds[0] - 1.0) * 100.0;
    println!("{:.3} s without, {:.3} s with: {share:+.2}% at {n} tokens", seconds[0], seconds[1]);
    Ok(())
}
