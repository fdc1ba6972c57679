//! Speed of many sequences at once, reading prompts (several to a pass of up to 512 tokens) and decoding:
//! `cargo run --release -p scrimp-llm --example batch_bench -- MODEL [DEPTH [TOKENS [BATCH ...]]]`
//!
//! Each sequence has its own prompt of DEPTH tokens (64); TOKENS (32) greedy steps of all of them are timed, best of 2.
#![allow(clippy::print_stdout)]

use scrimp_llm::{
    checkpoint::Checkpoint,
    logits::argmax,
    model::{Batch, Model, Output, RunOptions, Session, Step},
};
use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

/// Appends `tokens` to each session; returns the likeliest next ones.
fn step(batch: &mut Batch, sessions: &mut [Session], tokens: &[&[u32]]) -> Vec<u32> {
    let mut steps: Vec<_> = sessions
        .iter_mut()
        .zip(tokens)
        .map(|(session, tokens)| Step { session, tokens, output: Output::Logits })
        .collect();
    let best: Vec<_> = steps.iter().map(|_| AtomicU32::new(0)).collect();
    let results = batch.forward(&mut steps, &|i, logits| {
        best[i].store(argmax(logits).expect("finite logits"), Ordering::Relaxed);
    });
    results.into_iter().for_each(|result| result.expect("a step"));
    best.into_iter().map(AtomicU32::into_inner).collect()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default| args.get(i).map_or(default, |n| n.parse().expect("a number"));
    let (depth, tokens) = (number(1, 64), number(2, 32));
    let batches: Vec<usize> = args.iter().skip(3).map(|n| n.parse().expect("a number")).collect();
    let batches = if batches.is_empty() { vec![1, 2, 4, 8, 16] } else { batches };
    let checkpoint = Checkpoint::open(Path::new(&args[0])).expect("a model");
    let model = Model::load(checkpoint, &RunOptions::default()).expect("a model");
    for n in batches {
        let mut batch = Batch::new(&model);
        let (mut reading, mut decoding) = (f64::INFINITY, f64::INFINITY);
        let prompts: Vec<Vec<u32>> =
            (0..n).map(|i| (0..depth).map(|t| (1000 + 37 * t + 13 * i) as u32 % 20_000).collect()).collect();
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let together = (512 / depth).max(1);
        for _ in 0..2 {
            let mut sessions: Vec<_> = (0..n).map(|_| model.session()).collect();
            let start = Instant::now();
            let passes = sessions.chunks_mut(together).zip(prompts.chunks(together));
            let mut next: Vec<u32> =
                passes.flat_map(|(sessions, prompts)| step(&mut batch, sessions, prompts)).collect();
            reading = reading.min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            for _ in 0..tokens {
                let last: Vec<&[u32]> = next.iter().map(std::slice::from_ref).collect();
                next = step(&mut batch, &mut sessions, &last);
            }
            decoding = decoding.min(start.elapsed().as_secs_f64());
        }
        let (reading, rate) = ((n * depth) as f64 / reading, (n * tokens) as f64 / decoding);
        println!(
            "batch {n:2}: prompts {reading:7.1} tok/s, {rate:7.1} tok/s in all, {:6.1} each",
            rate / n as f64
        );
    }
}
