//! Choosing the best few of 262,144 logits without sorting them.

use crate::logits;
use std::cmp::Ordering;

/// A row of logits with temperature and min-p.
pub(super) struct Row<'a> {
    logits: &'a [f32],
    max: f32,
    /// `1 / temperature`.
    scale: f32,
    /// The smallest logit that min-p keeps. It is finite, so it excludes `NaN` and `-inf`.
    floor: f32,
}

impl<'a> Row<'a> {
    /// `max` is the largest of `logits`, and finite.
    pub(super) fn new(logits: &'a [f32], max: f32, scale: f32, min_p: f32) -> Self {
        // p >= min_p * p_max  <=>  (x - max) / t >= ln(min_p); ln(0) = -inf keeps everything.
        let floor = (max + min_p.ln() / scale).max(f32::MIN);
        Self { logits, max, scale, floor }
    }

    fn weight(&self, logit: f32) -> f64 {
        f64::from(logits::exp_nonpositive((logit - self.max) * self.scale))
    }

    fn total(&self, part: &[f32]) -> f64 {
        logits::exp_sum(part, self.max, self.scale, self.floor)
    }

    /// Draws from the whole row; `uniform` in `[0, 1)`. Sums per block first, so that the row is exponentiated once.
    pub(super) fn draw(&self, uniform: f64) -> Option<u32> {
        const BLOCK: usize = 1024;
        let sums: Vec<f64> = self.logits.chunks(BLOCK).map(|block| self.total(block)).collect();
        let mut left = uniform * sums.iter().sum::<f64>();
        let mut last = None;
        for (i, &sum) in sums.iter().enumerate() {
            if left >= sum {
                left -= sum;
                continue;
            }
            let start = i * BLOCK;
            for (offset, &x) in self.logits[start..].iter().take(BLOCK).enumerate() {
                let weight = if x >= self.floor { self.weight(x) } else { 0.0 };
                if weight > 0.0 {
                    last = u32::try_from(start + offset).ok();
                    if left < weight {
                        return last;
                    }
                    left -= weight;
                }
            }
            // Rounding: the block's terms summed to slightly less than its sum.
            return last;
        }
        last
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    logit: f32,
    token: u32,
}

/// Best first; equal logits by token id.
fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// The best tokens of a row, best first.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    best: Vec<Candidate>,
}

impl Candidates {
    /// Keeps the `k` best.
    ///
    /// One pass collects the candidates above the floor. At `2k` candidates (at least 256), the best `k` stay and the
    /// floor rises to the `k`-th. Blocks whose maximum is not above the floor are skipped.
    pub(super) fn top_k(&mut self, row: &Row<'_>, k: usize) {
        const BLOCK: usize = 128;
        let k = k.min(row.logits.len());
        let full = (2 * k).max(256);
        let best = &mut self.best;
        best.clear();
        // A later token with a logit equal to the k-th best ranks behind it, so the raised floor itself is excluded.
        let (mut floor, mut raised) = (row.floor, false);
        for (i, block) in row.logits.chunks(BLOCK).enumerate() {
            let max = logits::max(block);
            if max < floor || (raised && max == floor) {
                continue;
            }
            for (offset, &logit) in block.iter().enumerate() {
                if logit > floor || (!raised && logit == floor) {
                    best.push(Candidate { logit, token: (i * BLOCK + offset) as u32 });
                    if best.len() == full {
                        best.select_nth_unstable_by(k - 1, rank);
                        best.truncate(k);
                        (floor, raised) = (best[k - 1].logit, true);
                    }
                }
            }
        }
        if best.len() > k {
            best.select_nth_unstable_by(k - 1, rank);
            best.truncate(k);
        }
        best.sort_unstable_by(rank);
    }

    /// Keeps the smallest set of best tokens with `top_p` of the probability of the whole row.
    ///
    /// Most rows need a few dozen tokens; flat rows need thousands. The number of candidates grows until it suffices.
    pub(super) fn nucleus(&mut self, row: &Row<'_>, top_p: f32) {
        let wanted = row.total(row.logits) * f64::from(top_p);
        let mut k = 64;
        loop {
            self.top_k(row, k);
            if self.best.len() < k || self.mass(row) >= wanted {
                break;
            }
            k *= 8;
        }
        self.keep_mass(row, wanted);
    }

    /// Keeps the smallest set of best candidates with `top_p` of the probability *of the candidates*.
    pub(super) fn top_p(&mut self, row: &Row<'_>, top_p: f32) {
        if top_p < 1.0 {
            self.keep_mass(row, self.mass(row) * f64::from(top_p));
        }
    }

    fn mass(&self, row: &Row<'_>) -> f64 {
        self.best.iter().map(|c| row.weight(c.logit)).sum()
    }

    fn keep_mass(&mut self, row: &Row<'_>, wanted: f64) {
        let mut sum = 0.0;
        let last = self.best.iter().position(|c| {
            sum += row.weight(c.logit);
            sum >= wanted
        });
        if let Some(last) = last {
            self.best.truncate(last + 1);
        }
    }

    /// Draws among the candidates; `uniform` in `[0, 1)`.
    pub(super) fn draw(&self, row: &Row<'_>, uniform: f64) -> Option<u32> {
        let mut left = uniform * self.mass(row);
        for c in &self.best {
            let weight = row.weight(c.logit);
            if left < weight {
                return Some(c.token);
            }
            left -= weight;
        }
        self.best.last().map(|c| c.token)
    }
}

#[cfg(test)]
impl Candidates {
    pub(super) fn tokens(&self) -> Vec<u32> {
        self.best.iter().map(|c| c.token).collect()
    }
}
