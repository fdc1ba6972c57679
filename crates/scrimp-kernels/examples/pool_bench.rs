//! What a parallel region costs: `cargo run --release -p scrimp-kernels --example pool_bench [threads]`.
//!
//! Regions have one unit per thread. *Empty*: units that do nothing, back to back; a caller that does them all before
//! another thread has noticed looks fast here. *Shared*: units of 10 microseconds, after 10 microseconds of work by the
//! caller alone, like the regions of a decode step; reported is the time beyond the 10 that perfect sharing takes. On a
//! busy machine run it under `chrt -f 10`: threads that lose their core measure the scheduler.
#![allow(clippy::print_stdout)]

use rayon::prelude::*;
use scrimp_kernels::exec::Pool;
use std::{
    hint::black_box,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// Regions per round, and rounds of which the best and the median are reported.
const REGIONS: u32 = 200;
const ROUNDS: usize = 25;
/// Work of a unit of a shared region, and of the caller before the region.
const WORK: Duration = Duration::from_micros(10);

fn spin(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
}

/// Microseconds per region, of each round, sorted; the caller works for `pause` before each.
fn measure(pause: Duration, region: impl Fn()) -> Vec<f64> {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let mut spent = Duration::ZERO;
            for _ in 0..REGIONS {
                spin(pause);
                let start = Instant::now();
                region();
                spent += start.elapsed();
            }
            spent.as_secs_f64() * 1e6 / f64::from(REGIONS)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds
}

/// `region(work)` runs one unit of `work` per thread.
fn report(name: &str, region: impl Fn(Duration)) {
    let empty = measure(Duration::ZERO, || region(Duration::ZERO));
    let shared = measure(WORK, || region(WORK));
    let ideal = WORK.as_secs_f64() * 1e6;
    let middle = ROUNDS / 2;
    println!(
        "{name:26} {:8.2} {:8.2}    {:8.2} {:8.2}",
        empty[0],
        empty[middle],
        shared[0] - ideal,
        shared[middle] - ideal
    );
}

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    let done = AtomicUsize::new(0);
    let unit = &|i: usize, work: Duration| {
        done.fetch_add(black_box(i), Ordering::Relaxed);
        if !work.is_zero() {
            spin(work);
        }
    };
    println!("{threads} threads; microseconds per region, best and median of {ROUNDS} rounds");
    println!("{:26} {:>17}    {:>17}", "", "empty", "shared, beyond ideal");
    report("the caller alone", |work| (0..threads).for_each(|i| unit(i, work)));
    {
        let pool = Pool::new(threads).expect("threads");
        report("Pool::run", |work| pool.run(threads, |i, _| unit(i, work)));
    }
    {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let each = |work| (0..threads).into_par_iter().with_max_len(1).for_each(|i| unit(i, work));
        report("rayon: install, par_iter", |work| pool.install(|| each(work)));
        pool.install(|| {
            report("rayon: par_iter, inside", each);
            report("rayon: scope, inside", |work| {
                rayon::scope(|scope| {
                    for i in 1..threads {
                        scope.spawn(move |_| unit(i, work));
                    }
                    unit(0, work);
                });
            });
        });
    }
    report("std::thread::scope", |work| {
        std::thread::scope(|scope| {
            for i in 1..threads {
                scope.spawn(move || unit(i, work));
            }
            unit(0, work);
        });
    });
}
