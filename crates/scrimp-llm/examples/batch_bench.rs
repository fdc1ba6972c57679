//! Decode speed of many sequences at once:
//! `cargo run --release -p scrimp-llm --example batch_bench -- MODEL [DEPTH [TOKENS [BATCH ...]]]`
//!
//! Each sequence has its own prompt of DEPTH tokens (64); TOKENS (32) greedy steps of all of them are timed, best of 2.
#![allow(clippy::print_stdout)]

use scrimp_llm::{
    checkpoint::Checkpoint,
    logits::argmax,
    model::{Batch, Model, Output, RunOptions, Session, Step},
};
use std::{path::Path, time::Instant};

fn step<'m>(batch: &mut Batch<'m>, sessions: &mut [Session<'m>], next: &mut [u32]) {
    let mut steps: Vec<_> = sessions
        .iter_mut()
        .zip(&*next)
        .map(|(session, token)| Step { session, tokens: std::slice::from_ref(token), output: Output::Logits })
        .collect();
    let mut best = vec![0; steps.len()];
    let results =
        batch.forward(&mut steps, &mut |i, logits| best[i] = argmax(logits).expect("finite logits"));
    results.into_iter().for_each(|result| result.expect("a step"));
    next.copy_from_slice(&best);
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
        let mut best = f64::INFINITY;
        for _ in 0..2 {
            let mut sessions: Vec<_> = (0..n).map(|_| model.session()).collect();
            let mut next = vec![0; n];
            for (i, session) in sessions.iter_mut().enumerate() {
                let prompt: Vec<u32> = (0..depth).map(|t| (1000 + 37 * t + 13 * i) as u32 % 20_000).collect();
                next[i] = argmax(session.forward(&prompt).expect("a prompt")).expect("finite logits");
            }
            step(&mut batch, &mut sessions, &mut next);
            let start = Instant::now();
            for _ in 0..tokens {
                step(&mut batch, &mut sessions, &mut next);
            }
            best = best.min(start.elapsed().as_secs_f64());
        }
        let rate = (n * tokens) as f64 / best;
        println!("batch {n:2}: {rate:7.1} tok/s in all, {:6.1} each", rate / n as f64);
    }
}
